# Install: the library with its public headers as the target refrain::refrain, the program, licence and documents.
if(REFRAIN_INSTALL)
  include(CMakePackageConfigHelpers)
  set(refrain_package_dir "${CMAKE_INSTALL_LIBDIR}/cmake/Refrain")

  install(TARGETS refrain EXPORT RefrainTargets
    ARCHIVE DESTINATION "${CMAKE_INSTALL_LIBDIR}"
    INCLUDES DESTINATION "${CMAKE_INSTALL_INCLUDEDIR}")
  if(TARGET refrain_cli)
    install(TARGETS refrain_cli RUNTIME DESTINATION "${CMAKE_INSTALL_BINDIR}")
  endif()
  install(CODE "set(REFRAIN_HEADER_DIRS [[${PROJECT_SOURCE_DIR}]] [[${PROJECT_BINARY_DIR}/generated]])
    set(REFRAIN_INCLUDE_DIR [[${CMAKE_INSTALL_INCLUDEDIR}]])
    cmake_path(ABSOLUTE_PATH REFRAIN_INCLUDE_DIR BASE_DIRECTORY \"\${CMAKE_INSTALL_PREFIX}\")")
  install(SCRIPT "${PROJECT_SOURCE_DIR}/cmake/refrain_install_headers.cmake")
  # Side by side as in the repository, so that their links to each other hold.
  install(FILES "${PROJECT_SOURCE_DIR}/README.md" "${PROJECT_SOURCE_DIR}/LICENSE" DESTINATION "${CMAKE_INSTALL_DOCDIR}")
  install(DIRECTORY "${PROJECT_SOURCE_DIR}/docs" "${PROJECT_SOURCE_DIR}/examples" DESTINATION "${CMAKE_INSTALL_DOCDIR}"
    FILES_MATCHING PATTERN "*.md" PATTERN "*.cpp")
  install(EXPORT RefrainTargets NAMESPACE refrain:: DESTINATION "${refrain_package_dir}")

  configure_package_config_file("${PROJECT_SOURCE_DIR}/cmake/RefrainConfig.cmake.in"
    "${PROJECT_BINARY_DIR}/RefrainConfig.cmake" INSTALL_DESTINATION "${refrain_package_dir}")
  write_basic_package_version_file("${PROJECT_BINARY_DIR}/RefrainConfigVersion.cmake"
    COMPATIBILITY SameMinorVersion)
  install(FILES "${PROJECT_BINARY_DIR}/RefrainConfig.cmake" "${PROJECT_BINARY_DIR}/RefrainConfigVersion.cmake"
    "${PROJECT_SOURCE_DIR}/cmake/FindPCRE2.cmake" "${PROJECT_SOURCE_DIR}/cmake/Findutf8proc.cmake"
    DESTINATION "${refrain_package_dir}")
endif()
