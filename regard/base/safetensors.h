#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

namespace regard {

/// One tensor of a safetensors file: contiguous, little-endian, maybe not aligned to its items (copy before use).
struct TensorSpan {
  std::string name;
  std::string dtype;  ///< "F32", "BF16", "I64", "BOOL", ...
  std::vector<int64_t> shape;
  const void* data = nullptr;
  size_t bytes = 0;
};

/// A safetensors file mapped into memory. Everything in the header is checked against the file when it is opened; a
/// malformed file is a regard::Error that names the file and the key. Copies share the mapping, which lives as long
/// as one of them.
class Safetensors {
 public:
  explicit Safetensors(const std::string& path);

  const std::string& path() const { return path_; }
  const std::map<std::string, std::string>& metadata() const { return metadata_; }
  const std::vector<TensorSpan>& tensors() const { return tensors_; }  ///< sorted by name
  const TensorSpan* find(const std::string& name) const;               ///< null when there is none
  const TensorSpan& at(const std::string& name) const;                 ///< an error that suggests the nearest

 private:
  std::string path_;
  std::shared_ptr<const void> mapping_;
  std::map<std::string, std::string> metadata_;
  std::vector<TensorSpan> tensors_;
};

/// Writes the file whole or not at all (a temporary file in the same folder, synchronized, then renamed). The bytes
/// depend only on the arguments, not on the order of `tensors`: wide items come first, then by name, so that
/// every tensor is aligned to its items.
void write_safetensors(const std::string& path, const std::vector<TensorSpan>& tensors,
                       const std::map<std::string, std::string>& metadata = {});

/// Bytes of one item of a dtype; 0 for a dtype that is not known.
size_t safetensors_item_size(const std::string& dtype);

}  // namespace regard
