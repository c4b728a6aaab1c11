#include "regard/base/file.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <cstdio>
#include <cstring>

#include "regard/base/error.h"

namespace regard {
namespace {

/// Closes a file descriptor on every way out.
class Descriptor {
 public:
  explicit Descriptor(int value) : value_(value) {}
  Descriptor(const Descriptor&) = delete;
  Descriptor& operator=(const Descriptor&) = delete;
  ~Descriptor() {
    if (value_ >= 0) ::close(value_);
  }
  int get() const { return value_; }
  int close() {
    const int result = ::close(value_);
    value_ = -1;
    return result;
  }

 private:
  int value_;
};

/// Deletes a file on every way out but success.
class Temporary {
 public:
  explicit Temporary(std::string path) : path_(std::move(path)) {}
  Temporary(const Temporary&) = delete;
  Temporary& operator=(const Temporary&) = delete;
  ~Temporary() {
    if (!kept_) ::unlink(path_.c_str());
  }
  void keep() { kept_ = true; }

 private:
  std::string path_;
  bool kept_ = false;
};

[[noreturn]] void fail_errno(const std::string& function, const std::string& expected, const std::string& path) {
  fail(function, expected, "'" + path + "': " + std::strerror(errno));
}

bool write_all(int file, const void* data, size_t size) {
  const auto* bytes = static_cast<const char*>(data);
  while (size > 0) {
    const ssize_t written = ::write(file, bytes, size);
    if (written < 0 && errno == EINTR) continue;
    if (written < 0) return false;
    bytes += written;
    size -= static_cast<size_t>(written);
  }
  return true;
}

std::string folder_of(const std::string& path) {
  const size_t slash = path.rfind('/');
  if (slash == std::string::npos) return ".";
  return slash == 0 ? "/" : path.substr(0, slash);
}

}  // namespace

std::pair<std::shared_ptr<const void>, size_t> map_file(const std::string& path, const std::string& function) {
  const Descriptor file(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
  if (file.get() < 0) fail_errno(function, "a file that can be read", path);
  struct stat status {};
  if (::fstat(file.get(), &status) != 0) fail_errno(function, "a file that can be read", path);
  if (!S_ISREG(status.st_mode)) fail(function, "a regular file", "'" + path + "'");
  const auto size = static_cast<size_t>(status.st_size);
  if (size == 0) return {nullptr, 0};
  void* data = ::mmap(nullptr, size, PROT_READ, MAP_PRIVATE, file.get(), 0);
  if (data == MAP_FAILED) fail_errno(function, "a file that can be mapped", path);
  return {std::shared_ptr<const void>(data, [size](const void* p) { ::munmap(const_cast<void*>(p), size); }), size};
}

std::string read_file(const std::string& path, const std::string& function) {
  const Descriptor file(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
  if (file.get() < 0) fail_errno(function, "a file that can be read", path);
  std::string text;
  char buffer[1 << 14];
  for (;;) {
    const ssize_t count = ::read(file.get(), buffer, sizeof buffer);
    if (count < 0 && errno == EINTR) continue;
    if (count < 0) fail_errno(function, "a file that can be read", path);
    if (count == 0) return text;
    text.append(buffer, static_cast<size_t>(count));
  }
}

void write_file_atomically(const std::string& path, const std::string& text, const std::string& function) {
  const std::vector<std::pair<const void*, size_t>> pieces = {{text.data(), text.size()}};
  write_file_atomically(path, pieces, function);
}

void write_file_atomically(const std::string& path, const std::vector<std::pair<const void*, size_t>>& pieces,
                           const std::string& function) {
  struct stat status {};
  if (::stat(path.c_str(), &status) == 0 && !S_ISREG(status.st_mode))
    fail(function, "a regular file or a new one to write", "'" + path + "'");
  // The process and a counter name the file, so that writers in parallel do not meet.
  static std::atomic<unsigned> counter{0};
  const std::string name = path + ".tmp." + std::to_string(::getpid()) + "." + std::to_string(counter++);
  Descriptor file(::open(name.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666));
  if (file.get() < 0) fail_errno(function, "a file that can be written", path);
  Temporary temporary(name);
  for (const auto& [data, size] : pieces) {
    if (!write_all(file.get(), data, size)) fail_errno(function, "a file that can be written", path);
  }
  if (::fsync(file.get()) != 0 || file.close() != 0) fail_errno(function, "a file that can be written", path);
  if (std::rename(name.c_str(), path.c_str()) != 0) fail_errno(function, "a file that can be replaced", path);
  temporary.keep();
  // The rename itself is on disk once the folder is; a file system without that still has a whole file.
  const Descriptor folder(::open(folder_of(path).c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (folder.get() >= 0) ::fsync(folder.get());
}

}  // namespace regard
