// What opening the CUDA plugin says where it cannot be used. Needs no GPU, no driver and no plugin.
#include "refrain/backend/cuda/loader.h"

#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>

#include "refrain/core/error.h"

namespace refrain::backend::cuda {
namespace {

template <class Function>
std::string error_of(Function function) {
  try {
    function();
  } catch (const DeviceError& error) {
    return error.what();
  }
  return "nothing was thrown";
}

bool contains(const std::string& text, const std::string& part) {
  return text.find(part) != std::string::npos;
}

TEST(CudaLoader, AMissingPluginIsNamed) {
  const std::string error = error_of([] { open_plugin("/no/such/librefrain_cuda.so"); });
  EXPECT_TRUE(contains(error, "not found: expected /no/such/librefrain_cuda.so")) << error;
  const std::string folder = ::testing::TempDir() + "refrain_no_plugin";
  std::filesystem::create_directories(folder);
  EXPECT_TRUE(contains(error_of([&] { open_plugin(folder); }), folder + "/librefrain_cuda.so"));
}

TEST(CudaLoader, AFileThatIsNoLibraryIsRefused) {
  const std::string file = ::testing::TempDir() + "refrain_not_a_library.so";
  std::ofstream(file) << "text";
  const std::string error = error_of([&] { open_plugin(file); });
  EXPECT_TRUE(contains(error, file + " cannot be loaded")) << error;
}

TEST(CudaLoader, ALibraryWithoutTheSymbolIsRefused) {
  const std::string error = error_of([] { open_plugin("/lib/x86_64-linux-gnu/libm.so.6"); });
  if (!std::filesystem::exists("/lib/x86_64-linux-gnu/libm.so.6")) GTEST_SKIP() << "another system";
  EXPECT_TRUE(contains(error, "expected a plugin with the symbol refrain_cuda_plugin")) << error;
}

TEST(CudaLoader, KernelsAreBoundByName) {
  OpSchema add, mul;
  add.name = "add";
  mul.name = "mul";
  const OpSchema* const schemas[] = {&add, &mul};
  PluginKernel rows[2];
  rows[0].op = "mul";
  rows[0].kernel.name = "mul_f32";
  rows[0].kernel.numerics = "exact";
  rows[1].op = "add";
  rows[1].kernel.name = "add_f32";
  rows[1].kernel.numerics = "exact";
  Plugin plugin;
  plugin.kernels = rows;
  const std::vector<Kernel> table = bind_plugin(plugin, schemas, {}).kernels;
  ASSERT_EQ(table.size(), 2u);
  EXPECT_EQ(table[0].op, &mul);
  EXPECT_EQ(table[1].op, &add);
  EXPECT_EQ(table[1].name, "add_f32");
  const std::string error = error_of([&] { bind_plugin(plugin, std::span(schemas).first(1), {}); });
  EXPECT_EQ(error, "cuda: kernel mul_f32 is for the op mul, which does not exist");
  rows[1].kernel.numerics = {};
  EXPECT_EQ(error_of([&] { bind_plugin(plugin, schemas, {}); }),
            "cuda: kernel add_f32: expected a numerics class, got none");
}

TEST(CudaLoader, KernelsForSetsNameTheClassesOfTheirOps) {
  OpSchema add;
  add.name = "add";
  const OpSchema* const schemas[] = {&add};
  GroupKernel set;
  set.name = "product_add";
  Plugin plugin;
  plugin.group_kernels = std::span(&set, 1);
  const auto error = [&] { return error_of([&] { bind_plugin(plugin, schemas, {}); }); };
  EXPECT_EQ(error(), "cuda: kernel product_add: expected a numerics class, got none");
  set.numerics = "fast";
  EXPECT_EQ(error(), "nothing was thrown");
  const OpClass exact{"add", "exact"}, none{"add", {}}, other{"sub", "exact"};
  set.classes = std::span(&exact, 1);
  EXPECT_EQ(error(), "nothing was thrown");
  EXPECT_EQ(set.numerics_of("add"), "exact");
  EXPECT_EQ(set.numerics_of("product"), "fast");
  set.classes = std::span(&none, 1);
  EXPECT_EQ(error(), "cuda: kernel product_add: expected a numerics class, got none");
  set.classes = std::span(&other, 1);
  EXPECT_EQ(error(), "cuda: kernel product_add is for the op sub, which does not exist");
}

TEST(CudaLoader, LayoutsAreItsOwnOrTheLibrarys) {
  const auto accepts = [](const WeightInfo&, Uses) { return true; };
  const WeightLayout library[] = {{.name = "rows", .accepts = accepts, .as_stored = true},
                                  {.name = "grouped", .accepts = accepts}};
  const WeightLayout rows[] = {{.name = "tiles", .accepts = accepts, .pack_rows = 4}, {.name = "rows"}};
  Plugin plugin;
  plugin.layouts = rows;
  const std::vector<WeightLayout> layouts = bind_plugin(plugin, {}, library).layouts;
  ASSERT_EQ(layouts.size(), 2u);
  EXPECT_EQ(layouts[0].name, "tiles");
  EXPECT_EQ(layouts[0].pack_rows, 4u);
  EXPECT_EQ(layouts[1].name, "rows");
  EXPECT_TRUE(layouts[1].as_stored);
  EXPECT_EQ(error_of([&] { bind_plugin(plugin, {}, std::span(library).last(1)); }),
            "cuda: layout rows does not exist");
}

#if defined(REFRAIN_OTHER_PLUGIN)
TEST(CudaLoader, APluginOfAnotherBuildIsRefused) {
  const std::string error = error_of([] { open_plugin(REFRAIN_OTHER_PLUGIN); });
  EXPECT_TRUE(contains(error, "is of another build: expected ABI")) << error;
}
#endif

}  // namespace
}  // namespace refrain::backend::cuda
