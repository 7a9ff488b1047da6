# Install: the library with its headers as the target refrain::refrain, and the program.
if(REFRAIN_INSTALL)
  include(CMakePackageConfigHelpers)
  set(refrain_package_dir "${CMAKE_INSTALL_LIBDIR}/cmake/Refrain")

  install(TARGETS refrain EXPORT RefrainTargets
    ARCHIVE DESTINATION "${CMAKE_INSTALL_LIBDIR}"
    INCLUDES DESTINATION "${CMAKE_INSTALL_INCLUDEDIR}")
  if(TARGET refrain_cli)
    install(TARGETS refrain_cli RUNTIME DESTINATION "${CMAKE_INSTALL_BINDIR}")
  endif()
  install(DIRECTORY "${PROJECT_SOURCE_DIR}/refrain" DESTINATION "${CMAKE_INSTALL_INCLUDEDIR}"
    FILES_MATCHING PATTERN "*.h" PATTERN "*.inc" PATTERN "test*.h" EXCLUDE)
  install(EXPORT RefrainTargets NAMESPACE refrain:: DESTINATION "${refrain_package_dir}")

  configure_package_config_file("${PROJECT_SOURCE_DIR}/cmake/RefrainConfig.cmake.in"
    "${PROJECT_BINARY_DIR}/RefrainConfig.cmake" INSTALL_DESTINATION "${refrain_package_dir}")
  write_basic_package_version_file("${PROJECT_BINARY_DIR}/RefrainConfigVersion.cmake"
    COMPATIBILITY SameMinorVersion)
  install(FILES "${PROJECT_BINARY_DIR}/RefrainConfig.cmake" "${PROJECT_BINARY_DIR}/RefrainConfigVersion.cmake"
    "${PROJECT_SOURCE_DIR}/cmake/FindPCRE2.cmake" "${PROJECT_SOURCE_DIR}/cmake/Findutf8proc.cmake"
    DESTINATION "${refrain_package_dir}")
endif()
