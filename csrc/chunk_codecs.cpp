// SPDX-License-Identifier: BSD-3-Clause
#include "chunk_codecs.h"

#include <cstring>
#include <memory>

#include "checks.h"

namespace fastseg {
namespace {

// As libdeflate.h, zstd.h and blosc.h declare them; all three promise that these stay.
struct {
  void* (*create)();
  void (*free)(void*);
  int (*zlib)(void*, const void*, size_t, void*, size_t, size_t*, size_t*);
  int (*gzip)(void*, const void*, size_t, void*, size_t, size_t*, size_t*);
} deflate;
struct {
  void* (*create)();
  size_t (*free)(void*);
  size_t (*decompress)(void*, void*, size_t, const void*, size_t);
} zstd;
struct {
  int (*decompress)(const void*, void*, size_t, int);
} blosc;

template <class Functions>
void fill(Functions& functions, const std::vector<size_t>& addresses) {
  check(addresses.size() * sizeof(size_t) == sizeof functions, "addresses must be ",
        sizeof functions / sizeof(size_t), ", got ", addresses.size());
  std::memcpy(&functions, addresses.data(), sizeof functions);
}

// Made once a thread: making one for each chunk costs as much as decoding a small one. nullptr without a
// library.
void* deflate_state() {
  if (deflate.create == nullptr) return nullptr;
  thread_local const std::unique_ptr<void, void (*)(void*)> state(deflate.create(), deflate.free);
  return state.get();
}
void* zstd_state() {
  if (zstd.create == nullptr) return nullptr;
  thread_local const std::unique_ptr<void, size_t (*)(void*)> state(zstd.create(), zstd.free);
  return state.get();
}

uint32_t little_endian(const char* at) {
  const auto* bytes = reinterpret_cast<const unsigned char*>(at);
  return bytes[0] | bytes[1] << 8 | bytes[2] << 16 | uint32_t(bytes[3]) << 24;
}

}  // namespace

Codec codec_of(const std::string& name) {
  const char* const names[] = {"none", "zlib", "gzip", "zstd", "blosc"};
  for (int i = 0; i < 5; ++i) {
    if (name == names[i]) return Codec(i);
  }
  throw ValueError("codec must be none, zlib, gzip, zstd or blosc, got " + name);
}

void set_codec_functions(const std::string& library, const std::vector<size_t>& addresses) {
  if (library == "deflate") return fill(deflate, addresses);
  if (library == "zstd") return fill(zstd, addresses);
  check(library == "blosc", "library must be deflate, zstd or blosc, got ", library);
  fill(blosc, addresses);
}

bool decompress(Codec codec, const char* data, size_t bytes, char* to, size_t to_bytes) {
  constexpr size_t kBloscHeader = 16;
  size_t used = 0;
  switch (codec) {
    case Codec::kNone:
      if (bytes == to_bytes) std::memcpy(to, data, bytes);
      return bytes == to_bytes;
    case Codec::kZlib:  // without a place for the size that came out, any other one is an error
      return deflate_state() != nullptr &&
             deflate.zlib(deflate_state(), data, bytes, to, to_bytes, &used, nullptr) == 0 && used == bytes;
    case Codec::kGzip:
      return deflate_state() != nullptr &&
             deflate.gzip(deflate_state(), data, bytes, to, to_bytes, &used, nullptr) == 0 && used == bytes;
    case Codec::kZstd:  // errors are sizes beyond any other
      return zstd_state() != nullptr && zstd.decompress(zstd_state(), to, to_bytes, data, bytes) == to_bytes;
    case Codec::kBlosc:  // which believes the sizes in its header
      return blosc.decompress != nullptr && bytes >= kBloscHeader && little_endian(data + 4) == to_bytes &&
             little_endian(data + 12) == bytes && size_t(blosc.decompress(data, to, to_bytes, 1)) == to_bytes;
  }
  return false;
}

}  // namespace fastseg
