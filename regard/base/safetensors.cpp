#include "regard/base/safetensors.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <limits>
#include <nlohmann/json.hpp>
#include <set>

#include "regard/base/error.h"
#include "regard/base/file.h"
#include "regard/base/names.h"

namespace regard {
namespace {

using nlohmann::json;

constexpr const char* kRead = "safetensors";
constexpr const char* kWrite = "write_safetensors";
constexpr const char* kMetadata = "__metadata__";
constexpr uint64_t kLongestHeader = 100'000'000;  // the format's own limit

struct Dtype {
  const char* name;
  size_t bytes;
};
constexpr std::array<Dtype, 17> kDtypes = {{{"BOOL", 1},
                                            {"U8", 1},
                                            {"I8", 1},
                                            {"F8_E5M2", 1},
                                            {"F8_E4M3", 1},
                                            {"F8_E8M0", 1},
                                            {"I16", 2},
                                            {"U16", 2},
                                            {"F16", 2},
                                            {"BF16", 2},
                                            {"I32", 4},
                                            {"U32", 4},
                                            {"F32", 4},
                                            {"I64", 8},
                                            {"U64", 8},
                                            {"F64", 8},
                                            {"C64", 8}}};

/// Bytes of a contiguous tensor, or false when the count overflows.
bool byte_count(const std::vector<int64_t>& shape, size_t item, uint64_t& bytes) {
  bytes = item;
  for (const int64_t size : shape) {
    if (__builtin_mul_overflow(bytes, static_cast<uint64_t>(size), &bytes)) return false;
  }
  return true;
}

std::string shown(const json& value) {
  std::string text = value.dump(-1, ' ', false, json::error_handler_t::replace);
  return text.size() > 80 ? text.substr(0, 77) + "..." : text;
}

/// Reads the header of one file, whose `size` bytes lie at `data`.
class Reader {
 public:
  Reader(const std::string& path, const unsigned char* data, size_t size) : path_(path), data_(data), size_(size) {}

  void run(std::map<std::string, std::string>& metadata, std::vector<TensorSpan>& tensors) {
    const json header = parse_header();
    for (const auto& [key, value] : header.items()) {
      if (key == kMetadata) {
        read_metadata(value, metadata);
      } else {
        tensors.push_back(read_tensor(key, value));
      }
    }
    check_cover(tensors);
    std::sort(tensors.begin(), tensors.end(), [](const auto& a, const auto& b) { return a.name < b.name; });
  }

 private:
  [[noreturn]] void refuse(const std::string& expected, const std::string& found) const {
    fail(kRead, expected + " in '" + path_ + "'", found);
  }

  json parse_header() {
    if (size_ < 8) refuse("a header length of 8 bytes", std::to_string(size_) + " bytes");
    uint64_t length = 0;
    for (int i = 7; i >= 0; --i) length = length << 8 | data_[i];
    if (length > kLongestHeader || length > size_ - 8) {
      refuse("a header of at most " + std::to_string(std::min<uint64_t>(kLongestHeader, size_ - 8)) + " bytes",
             std::to_string(length));
    }
    begin_ = 8 + static_cast<size_t>(length);
    std::set<std::string> keys;
    std::string twice;
    const auto note_key = [&](int depth, json::parse_event_t event, json& parsed) {
      if (event == json::parse_event_t::key && depth == 1 && !keys.insert(parsed.get<std::string>()).second) {
        twice = parsed.get<std::string>();
      }
      return true;
    };
    json header;
    try {
      header = json::parse(data_ + 8, data_ + begin_, note_key);
    } catch (const json::exception& error) {
      refuse("a header in JSON", error.what());
    }
    if (!header.is_object()) refuse("a header that is an object", shown(header));
    if (!twice.empty()) refuse("every key once", "'" + twice + "' twice");
    return header;
  }

  void read_metadata(const json& value, std::map<std::string, std::string>& metadata) const {
    if (!value.is_object()) refuse("'__metadata__' as an object of strings", shown(value));
    for (const auto& [key, text] : value.items()) {
      if (!text.is_string()) refuse("a string as '__metadata__." + key + "'", shown(text));
      metadata[key] = text.get<std::string>();
    }
  }

  uint64_t unsigned_number(const json& value, const std::string& what) const {
    if (!value.is_number_unsigned() || value.get<uint64_t>() > uint64_t{std::numeric_limits<int64_t>::max()}) {
      refuse("an integer of at least 0 as " + what, shown(value));
    }
    return value.get<uint64_t>();
  }

  TensorSpan read_tensor(const std::string& name, const json& value) const {
    const std::string of = " of '" + name + "'";
    if (!value.is_object()) refuse("an object for the key '" + name + "'", shown(value));
    for (const char* key : {"dtype", "shape", "data_offsets"}) {
      if (!value.contains(key)) refuse("'" + std::string(key) + "'" + of, shown(value));
    }
    TensorSpan tensor;
    tensor.name = name;
    if (!value["dtype"].is_string()) refuse("a string as the dtype" + of, shown(value["dtype"]));
    tensor.dtype = value["dtype"].get<std::string>();
    const size_t item = safetensors_item_size(tensor.dtype);
    if (item == 0) refuse("a known dtype" + of, "'" + tensor.dtype + "'");
    if (!value["shape"].is_array()) refuse("a list as the shape" + of, shown(value["shape"]));
    for (const auto& size : value["shape"]) {
      tensor.shape.push_back(static_cast<int64_t>(unsigned_number(size, "a size" + of)));
    }
    const json& offsets = value["data_offsets"];
    if (!offsets.is_array() || offsets.size() != 2) refuse("two data_offsets" + of, shown(offsets));
    const uint64_t first = unsigned_number(offsets[0], "a data offset" + of);
    const uint64_t last = unsigned_number(offsets[1], "a data offset" + of);
    const size_t available = size_ - begin_;
    if (first > last || last > available) {
      refuse("data_offsets" + of + " within [0, " + std::to_string(available) + "]", shown(offsets));
    }
    uint64_t bytes = 0;
    if (!byte_count(tensor.shape, item, bytes) || bytes != last - first) {
      refuse("the bytes of shape " + shown(value["shape"]) + " and dtype " + tensor.dtype + of,
             std::to_string(last - first) + " bytes");
    }
    tensor.data = data_ + begin_ + first;
    tensor.bytes = static_cast<size_t>(bytes);
    return tensor;
  }

  /// The format asks that tensors fill the data without holes and without overlaps.
  void check_cover(const std::vector<TensorSpan>& tensors) const {
    std::vector<const TensorSpan*> order;
    for (const auto& tensor : tensors) order.push_back(&tensor);
    std::sort(order.begin(), order.end(), [](const TensorSpan* a, const TensorSpan* b) {
      return a->data != b->data ? a->data < b->data : a->bytes < b->bytes;
    });
    const unsigned char* next = data_ + begin_;
    for (const TensorSpan* tensor : order) {
      if (tensor->data != next) {
        refuse("'" + tensor->name + "' to begin where the tensor before it ends, at byte " + offset(next),
               offset(static_cast<const unsigned char*>(tensor->data)));
      }
      next += tensor->bytes;
    }
    if (next != data_ + size_)
      refuse("data up to the end of the last tensor, byte " + offset(next), offset(data_ + size_));
  }

  std::string offset(const unsigned char* position) const { return std::to_string(position - (data_ + begin_)); }

  const std::string& path_;
  const unsigned char* data_;
  size_t size_;
  size_t begin_ = 8;  ///< where the data begins
};

void check_tensor(const TensorSpan& tensor) {
  const std::string of = " of '" + tensor.name + "'";
  const size_t item = safetensors_item_size(tensor.dtype);
  if (tensor.name == kMetadata) fail(kWrite, "tensor names other than '__metadata__'", "'__metadata__'");
  if (item == 0) fail(kWrite, "a known dtype" + of, "'" + tensor.dtype + "'");
  for (const int64_t size : tensor.shape) {
    if (size < 0) fail(kWrite, "sizes of at least 0" + of, std::to_string(size));
  }
  uint64_t bytes = 0;
  if (!byte_count(tensor.shape, item, bytes) || bytes != tensor.bytes) {
    fail(kWrite, "the bytes of the shape" + of, std::to_string(tensor.bytes) + " bytes");
  }
}

std::string dump(const json& header) {
  try {
    return header.dump();
  } catch (const json::exception& error) {
    fail(kWrite, "names and metadata in UTF-8", error.what());
  }
}

}  // namespace

size_t safetensors_item_size(const std::string& dtype) {
  for (const auto& known : kDtypes) {
    if (dtype == known.name) return known.bytes;
  }
  return 0;
}

Safetensors::Safetensors(const std::string& path) : path_(path) {
  size_t size = 0;
  std::tie(mapping_, size) = map_file(path, kRead);
  Reader(path_, static_cast<const unsigned char*>(mapping_.get()), size).run(metadata_, tensors_);
}

const TensorSpan* Safetensors::find(const std::string& name) const {
  const auto found =
      std::lower_bound(tensors_.begin(), tensors_.end(), name,
                       [](const TensorSpan& tensor, const std::string& key) { return tensor.name < key; });
  return found != tensors_.end() && found->name == name ? &*found : nullptr;
}

const TensorSpan& Safetensors::at(const std::string& name) const {
  if (const TensorSpan* tensor = find(name)) return *tensor;
  std::vector<std::string> names;
  for (const auto& tensor : tensors_) names.push_back(tensor.name);
  fail(kRead, "a tensor '" + name + "' in '" + path_ + "'", "none" + suggestion(name, names));
}

void write_safetensors(const std::string& path, const std::vector<TensorSpan>& tensors,
                       const std::map<std::string, std::string>& metadata) {
  std::vector<const TensorSpan*> order;
  for (const auto& tensor : tensors) {
    check_tensor(tensor);
    order.push_back(&tensor);
  }
  std::sort(order.begin(), order.end(), [](const TensorSpan* a, const TensorSpan* b) {
    const size_t x = safetensors_item_size(a->dtype), y = safetensors_item_size(b->dtype);
    return x != y ? x > y : a->name < b->name;
  });
  json header = json::object();
  if (!metadata.empty()) header[kMetadata] = metadata;
  std::vector<std::pair<const void*, size_t>> pieces(2);
  size_t offset = 0;
  for (const TensorSpan* tensor : order) {
    if (header.contains(tensor->name)) fail(kWrite, "every name once", "'" + tensor->name + "' twice");
    header[tensor->name] = {
        {"dtype", tensor->dtype}, {"shape", tensor->shape}, {"data_offsets", {offset, offset + tensor->bytes}}};
    offset += tensor->bytes;
    if (tensor->bytes > 0) pieces.emplace_back(tensor->data, tensor->bytes);
  }
  std::string text = dump(header);
  text.resize((text.size() + 7) / 8 * 8, ' ');  // the data begin at a multiple of 8 bytes
  unsigned char length[8];
  for (size_t i = 0; i < 8; ++i) length[i] = static_cast<unsigned char>(text.size() >> (8 * i));
  pieces[0] = {length, sizeof length};
  pieces[1] = {text.data(), text.size()};
  write_file_atomically(path, pieces, kWrite);
}

}  // namespace regard
