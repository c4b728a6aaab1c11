#include "regard/base/safetensors.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <cstring>
#include <filesystem>
#include <fstream>
#include <random>

#include "regard/base/error.h"

namespace regard {
namespace {

namespace fs = std::filesystem;

class SafetensorsTest : public ::testing::Test {
 protected:
  void SetUp() override {
    folder_ = fs::temp_directory_path() / ("regard_safetensors_" + std::to_string(::getpid()));
    fs::create_directories(folder_);
  }
  void TearDown() override { fs::remove_all(folder_); }

  std::string path(const std::string& name = "a.safetensors") const { return (folder_ / name).string(); }

  static std::string read(const std::string& path) {
    std::ifstream file(path, std::ios::binary);
    return {std::istreambuf_iterator<char>(file), {}};
  }

  void write(const std::string& bytes) const { std::ofstream(path(), std::ios::binary) << bytes; }

  /// A file with this header, its length before it and `data` bytes after it.
  void write_header(const std::string& header, size_t data) const {
    std::string bytes(8, '\0');
    for (size_t i = 0; i < 8; ++i) bytes[i] = static_cast<char>(header.size() >> (8 * i));
    write(bytes + header + std::string(data, 'x'));
  }

  template <class Body>
  static std::string message(Body body) {
    try {
      body();
    } catch (const Error& error) {
      return error.what();
    }
    return "";
  }

  std::string refusal() const {
    std::string text = message([this] { Safetensors file(path()); });
    const size_t at = text.find(path());
    return at == std::string::npos ? text : text.replace(at, path().size(), "FILE");
  }

  std::string refusal_of(const std::string& header, size_t data) const {
    write_header(header, data);
    return refusal();
  }

  fs::path folder_;
};

TEST_F(SafetensorsTest, WritesAndReads) {
  const std::vector<float> weight{1, 2, 3, 4, 5, 6};
  const std::vector<double> bias{0.5, -0.5};
  const std::vector<unsigned char> flags{1, 0, 1};
  write_safetensors(path(),
                    {{"b.flags", "BOOL", {3}, flags.data(), 3},
                     {"weight", "F32", {2, 3}, weight.data(), 24},
                     {"bias", "F64", {2}, bias.data(), 16},
                     {"empty", "F16", {0, 4}, nullptr, 0},
                     {"scalar", "F32", {}, weight.data() + 5, 4}},
                    {{"config", "{\"width\": 2}"}, {"format", "pt"}});
  const Safetensors file(path());
  EXPECT_EQ(file.metadata().at("config"), "{\"width\": 2}");
  EXPECT_EQ(file.metadata().size(), 2u);
  ASSERT_EQ(file.tensors().size(), 5u);
  EXPECT_EQ(file.tensors()[0].name, "b.flags");
  EXPECT_EQ(file.at("weight").shape, (std::vector<int64_t>{2, 3}));
  EXPECT_EQ(std::memcmp(file.at("weight").data, weight.data(), 24), 0);
  EXPECT_EQ(std::memcmp(file.at("bias").data, bias.data(), 16), 0);
  EXPECT_EQ(std::memcmp(file.at("b.flags").data, flags.data(), 3), 0);
  EXPECT_EQ(file.at("empty").bytes, 0u);
  EXPECT_TRUE(file.at("scalar").shape.empty());
  EXPECT_EQ(reinterpret_cast<uintptr_t>(file.at("bias").data) % 8, 0u);
  EXPECT_EQ(reinterpret_cast<uintptr_t>(file.at("weight").data) % 4, 0u);
  EXPECT_EQ(file.find("none"), nullptr);
  EXPECT_EQ(message([&] { file.at("wieght"); }),
            "[safetensors] expected a tensor 'wieght' in '" + path() + "'; found none; did you mean 'weight'?");
}

TEST_F(SafetensorsTest, ViewsOutliveTheObjectTheyCameFrom) {
  const float value = 3;
  write_safetensors(path(), {{"x", "F32", {1}, &value, 4}});
  auto first = std::make_unique<Safetensors>(path());
  const Safetensors copy = *first;
  first.reset();
  float read = 0;
  std::memcpy(&read, copy.at("x").data, 4);
  EXPECT_EQ(read, 3);
}

TEST_F(SafetensorsTest, BytesDoNotDependOnTheOrder) {
  const double values[2] = {1, 2};
  const std::vector<TensorSpan> tensors{
      {"a", "F64", {1}, values, 8}, {"b", "F32", {2}, values, 8}, {"c", "U8", {3}, values, 3}};
  write_safetensors(path("1"), tensors, {{"k", "v"}});
  write_safetensors(path("2"), {tensors[2], tensors[0], tensors[1]}, {{"k", "v"}});
  const std::string bytes = read(path("1"));
  EXPECT_EQ(bytes, read(path("2")));
  uint64_t length = 0;
  std::memcpy(&length, bytes.data(), 8);
  EXPECT_EQ(length % 8, 0u);
  EXPECT_EQ(bytes.substr(8, 30), "{\"__metadata__\":{\"k\":\"v\"},\"a\":");
}

TEST_F(SafetensorsTest, WritesWholeOrNotAtAll) {
  const float value = 3;
  write_safetensors(path(), {{"x", "F32", {1}, &value, 4}});
  const std::string before = read(path());
  EXPECT_NE(message([&] { write_safetensors(path(), {{"x", "F32", {2}, &value, 4}}); }), "");
  EXPECT_EQ(read(path()), before);
  write_safetensors(path(), {{"y", "F32", {1}, &value, 4}});
  EXPECT_NE(Safetensors(path()).find("y"), nullptr);
  size_t files = 0;
  for ([[maybe_unused]] const auto& entry : fs::directory_iterator(folder_)) ++files;
  EXPECT_EQ(files, 1u);  // no temporary file stays
  EXPECT_EQ(message([&] { write_safetensors(path("no/where"), {}); }),
            "[write_safetensors] expected a file that can be written; found '" + path("no/where") +
                "': No such file or directory");
}

TEST_F(SafetensorsTest, WriterRefusesBadTensors) {
  const float value = 3;
  const auto refused = [&](std::vector<TensorSpan> tensors) {
    return message([&] { write_safetensors(path(), tensors); });
  };
  EXPECT_EQ(refused({{"x", "F33", {1}, &value, 4}}), "[write_safetensors] expected a known dtype of 'x'; found 'F33'");
  EXPECT_EQ(refused({{"x", "F32", {2}, &value, 4}}),
            "[write_safetensors] expected the bytes of the shape of 'x'; found 4 bytes");
  EXPECT_EQ(refused({{"x", "F32", {-1}, &value, 4}}),
            "[write_safetensors] expected sizes of at least 0 of 'x'; found -1");
  EXPECT_EQ(refused({{"x", "F32", {1}, &value, 4}, {"x", "U8", {1}, &value, 1}}),
            "[write_safetensors] expected every name once; found 'x' twice");
  EXPECT_EQ(refused({{"__metadata__", "F32", {1}, &value, 4}}),
            "[write_safetensors] expected tensor names other than '__metadata__'; found '__metadata__'");
}

TEST_F(SafetensorsTest, RefusesFilesThatAreNone) {
  EXPECT_EQ(refusal(), "[safetensors] expected a file that can be read; found 'FILE': No such file or directory");
  write("");
  EXPECT_EQ(refusal(), "[safetensors] expected a header length of 8 bytes in 'FILE'; found 0 bytes");
  write("1234567");
  EXPECT_EQ(refusal(), "[safetensors] expected a header length of 8 bytes in 'FILE'; found 7 bytes");
  write(std::string(8, '\xff') + "{}");
  EXPECT_EQ(refusal(), "[safetensors] expected a header of at most 2 bytes in 'FILE'; found 18446744073709551615");
  EXPECT_NE(refusal_of("{\"a\"", 0).find("expected a header in JSON in 'FILE'; found "), std::string::npos);
  EXPECT_EQ(refusal_of("[]", 0), "[safetensors] expected a header that is an object in 'FILE'; found []");
  EXPECT_NE(message([this] { Safetensors file(folder_.string()); }).find("expected a regular file"), std::string::npos);
}

TEST_F(SafetensorsTest, RefusesBadKeys) {
  const std::string in = " in 'FILE'; found ";
  EXPECT_EQ(refusal_of(R"({"x": 5})", 0), "[safetensors] expected an object for the key 'x'" + in + "5");
  EXPECT_EQ(refusal_of(R"({"x": {"shape": []}})", 0), "[safetensors] expected 'dtype' of 'x'" + in + R"({"shape":[]})");
  EXPECT_EQ(refusal_of(R"({"x": {"dtype": "F99", "shape": [], "data_offsets": [0, 4]}})", 4),
            "[safetensors] expected a known dtype of 'x'" + in + "'F99'");
  EXPECT_EQ(refusal_of(R"({"x": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}})", 4),
            "[safetensors] expected an integer of at least 0 as a size of 'x'" + in + "-1");
  EXPECT_EQ(refusal_of(R"({"x": {"dtype": "F32", "shape": [1], "data_offsets": [0, 8]}})", 4),
            "[safetensors] expected data_offsets of 'x' within [0, 4]" + in + "[0,8]");
  EXPECT_EQ(refusal_of(R"({"x": {"dtype": "F32", "shape": [1], "data_offsets": [4, 0]}})", 4),
            "[safetensors] expected data_offsets of 'x' within [0, 4]" + in + "[4,0]");
  EXPECT_EQ(refusal_of(R"({"x": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}})", 4),
            "[safetensors] expected the bytes of shape [2] and dtype F32 of 'x'" + in + "4 bytes");
  // The count wraps to 0 in 64 bits.
  EXPECT_EQ(refusal_of(R"({"x": {"dtype": "F32", "shape": [4611686018427387904, 4], "data_offsets": [0, 0]}})", 0),
            "[safetensors] expected the bytes of shape [4611686018427387904,4] and dtype F32 of 'x'" + in + "0 bytes");
  EXPECT_EQ(refusal_of(R"({"x": {"dtype": "U8", "shape": [2], "data_offsets": [0, 2]},
                           "y": {"dtype": "U8", "shape": [2], "data_offsets": [1, 3]}})",
                       3),
            "[safetensors] expected 'y' to begin where the tensor before it ends, at byte 2" + in + "1");
  EXPECT_EQ(refusal_of(R"({"x": {"dtype": "U8", "shape": [2], "data_offsets": [0, 2]}})", 3),
            "[safetensors] expected data up to the end of the last tensor, byte 2" + in + "3");
  EXPECT_EQ(refusal_of(R"({"x": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]},
                           "x": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]}})",
                       1),
            "[safetensors] expected every key once" + in + "'x' twice");
  EXPECT_EQ(refusal_of(R"({"__metadata__": {"a": 1}})", 0),
            "[safetensors] expected a string as '__metadata__.a'" + in + "1");
}

TEST_F(SafetensorsTest, SurvivesAnyDamage) {
  const std::vector<float> values(16, 1.0f);
  write_safetensors(path(), {{"a", "F32", {4, 2}, values.data(), 32}, {"b", "F32", {8}, values.data(), 32}},
                    {{"k", "v"}});
  const std::string whole = read(path());
  std::mt19937 engine(5);
  for (size_t length = 0; length < whole.size(); length += 3) {
    write(whole.substr(0, length));
    EXPECT_NE(refusal(), "") << length;
  }
  for (int round = 0; round < 400; ++round) {
    std::string bytes = whole;
    const size_t header = whole.size() - 64;
    for (int edits = 1 + static_cast<int>(engine() % 3); edits > 0; --edits)
      bytes[engine() % header] = static_cast<char>(engine());
    write(bytes);
    try {
      const Safetensors file(path());
      unsigned sum = 0;  // what was accepted can be read
      for (const auto& tensor : file.tensors()) {
        for (size_t i = 0; i < tensor.bytes; ++i) sum += static_cast<const unsigned char*>(tensor.data)[i];
      }
      EXPECT_LE(sum, 64u * 255u);
    } catch (const Error&) {
    }
  }
}

}  // namespace
}  // namespace regard
