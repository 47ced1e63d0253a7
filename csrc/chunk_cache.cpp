// SPDX-License-Identifier: BSD-3-Clause
// Boxes put together from the chunks of files, which are kept decoded while there is room.
//
// Python's lock guards all of it: what is done under it takes three microseconds a chunk, a fork finds it in
// order, and arrays that Python decoded lie beside ours. Reading, decoding and copying release it.
#include <pybind11/stl.h>

#include <algorithm>
#include <future>
#include <list>
#include <unordered_map>

#include "array_boxes.h"
#include "arrays.h"
#include "checks.h"
#include "chunk_layout.h"

namespace fastseg {
namespace {

// Of decoded chunks that are held until they are copied: all that a patch touches, few of a large box.
constexpr int64_t kMostHeld = int64_t(8) << 20;

constexpr int64_t kFurthest = int64_t(1) << 61;

// What an entry takes beside its array, about; it bounds the number of chunks never written.
constexpr int64_t kEntryBytes = 512;

struct Key {
  int64_t array;
  ChunkIndex index;

  bool operator==(const Key& other) const { return array == other.array && index == other.index; }
};
struct KeyHash {
  size_t operator()(const Key& key) const {
    auto hash = uint64_t(key.array);
    for (const int64_t i : key.index) {
      hash = (hash ^ uint64_t(i)) * 0x9E3779B97F4A7C15u;
      hash ^= hash >> 29;
    }
    return size_t(hash);
  }
};

// Decoded here, as its layout says, or by Python; neither: never written.
struct Chunk {
  Block block;
  py::object array;
};

// A box that is being put together from the chunks of a source.
struct Box {
  const py::object& source;
  const ChunkLayout& layout;
  const std::vector<int64_t>& start;
  const py::object& out;

  size_t add(BoxParts& parts, const Chunk& chunk, const Key& key) const {
    static const Sizes nothing(kMostBoxAxes);
    int64_t place[kMostBoxAxes];
    for (int axis = 0; axis < parts.axes(); ++axis) {
      place[axis] = key.index[axis] * layout.shape[axis] - start[axis];
    }
    if (chunk.array) return parts.add(array_of(chunk.array, "chunks"), place);
    const auto& strides = chunk.block ? layout.strides : nothing;
    const void* const data = chunk.block ? chunk.block.get() : layout.fill.data();
    return parts.add(data, layout.dtype, layout.shape.data(), strides.data(), place);
  }
  py::tuple index(const Key& key) const {
    py::tuple numbers(start.size());
    for (size_t axis = 0; axis < start.size(); ++axis) numbers[axis] = key.index[axis];
    return numbers;
  }
};

// By the source's own account.
std::vector<ChunkPlace> ask_places(const Box& box, const std::vector<Key>& keys) {
  py::array_t<int64_t> indices({keys.size(), box.start.size()});
  for (size_t i = 0; i < keys.size(); ++i) {
    std::copy_n(keys[i].index.data(), box.start.size(), indices.mutable_data(i, 0));
  }
  const py::tuple found = box.source.attr("places")(indices);
  check(found.size() == 3, "places must be files, offsets and sizes, got ", found.size());
  const py::sequence files = found[0];
  const auto offsets = found[1].cast<std::vector<int64_t>>(), sizes = found[2].cast<std::vector<int64_t>>();
  check(files.size() == keys.size() && offsets.size() == keys.size() && sizes.size() == keys.size(),
        "files, offsets and sizes must be ", keys.size(), ", got ", files.size(), ", ", offsets.size(),
        " and ", sizes.size());
  std::vector<ChunkPlace> places;
  for (size_t i = 0; i < keys.size(); ++i) {
    const auto path = py::reinterpret_steal<py::bytes>(PyUnicode_EncodeFSDefault(py::object(files[i]).ptr()));
    if (!path) throw py::error_already_set();
    places.push_back({path, offsets[i], sizes[i], nullptr, ChunkState::kFailed});
  }
  return places;
}

class ChunkCache {
 public:
  explicit ChunkCache(int64_t most_bytes) : most_bytes(most_bytes) {}

  void read(const py::object& source, const std::vector<int64_t>& start, const py::object& out);
  void clear() { places_.clear(), entries_.clear(), coming_.clear(), held = decoded = 0; }
  size_t size() const { return entries_.size(); }

  const int64_t most_bytes;
  int64_t held = 0, decoded = 0;

 private:
  struct Entry {
    Key key;
    Chunk chunk;
    int64_t bytes;
  };
  class Loading;

  void read_some(const Box& box, std::vector<Key> keys);
  std::vector<Chunk> load(const Box& box, const std::vector<Key>& keys, BoxParts& parts);
  void keep(const ChunkLayout& layout, const std::vector<Key>& keys, const std::vector<Chunk>& chunks);

  std::list<Entry> entries_;  // the one used last first
  std::unordered_map<Key, std::list<Entry>::iterator, KeyHash> places_;
  std::unordered_map<Key, std::shared_future<void>, KeyHash> coming_;
};

// Chunks that this thread decodes. Others wait for them, and look again when they are there, or failed.
class ChunkCache::Loading {
 public:
  explicit Loading(ChunkCache& cache) : cache_(cache), coming_(done_.get_future()) {}
  ~Loading() {
    for (const Key& key : keys_) cache_.coming_.erase(key);
    done_.set_value();
  }
  Loading(const Loading&) = delete;
  Loading& operator=(const Loading&) = delete;

  void add(const Key& key) {
    keys_.push_back(key);
    cache_.coming_.emplace(key, coming_);
  }
  const std::vector<Key>& keys() const { return keys_; }

 private:
  ChunkCache& cache_;
  std::vector<Key> keys_;
  std::promise<void> done_;
  std::shared_future<void> coming_;
};

// The box [start, start + the shape of out), chunk by chunk, a few at a time.
void ChunkCache::read(const py::object& source, const std::vector<int64_t>& start, const py::object& out) {
  const py::object of_source = source.attr("stored");
  const auto& layout = of_source.cast<const ChunkLayout&>();
  const py::array into = array_of(out, "out");
  const size_t axes = layout.shape.size();
  check(start.size() == axes && size_t(into.ndim()) == axes, "start and out must have the ", axes,
        " axes of chunks, got ", start.size(), " and ", into.ndim());
  Key key{layout.number, {}}, end = key;
  for (size_t axis = 0; axis < axes; ++axis) {
    check(start[axis] >= 0 && start[axis] < kFurthest, "start must be from 0 to 2^61, got ", start[axis]);
    if (into.shape(axis) == 0) return;
    key.index[axis] = start[axis] / layout.shape[axis];
    end.index[axis] = (start[axis] + into.shape(axis) - 1) / layout.shape[axis] + 1;
  }
  const Key first = key;
  const auto most = size_t(std::max<int64_t>(1, kMostHeld / layout.bytes));
  std::vector<Key> keys;
  for (bool more = true; more;) {
    keys.push_back(key);
    size_t axis = axes;
    for (; axis > 0 && ++key.index[axis - 1] == end.index[axis - 1]; --axis) {
      key.index[axis - 1] = first.index[axis - 1];
    }
    more = axis > 0;
    if (more && keys.size() < most) continue;
    read_some({source, layout, start, out}, std::move(keys));
    keys.clear();
  }
}

void ChunkCache::read_some(const Box& box, std::vector<Key> keys) {
  while (!keys.empty()) {
    std::vector<Key> others;
    std::shared_future<void> other;
    {
      BoxParts parts(box.out);
      std::vector<Chunk> found;  // held until they are copied
      Loading mine(*this);
      for (const Key& key : keys) {
        if (const auto at = places_.find(key); at != places_.end()) {
          entries_.splice(entries_.begin(), entries_, at->second);
          found.push_back(at->second->chunk);
          box.add(parts, found.back(), key);
        } else if (const auto coming = coming_.find(key); coming != coming_.end()) {
          others.push_back(key);
          other = coming->second;
        } else {
          mine.add(key);
        }
      }
      if (mine.keys().empty()) {
        const py::gil_scoped_release release;
        parts.copy();
      } else {  // before waiting for others, who may wait for these
        keep(box.layout, mine.keys(), load(box, mine.keys(), parts));
      }
    }
    if (other.valid()) {
      const py::gil_scoped_release release;
      other.wait();
    }
    keys = std::move(others);
  }
}

// Chunks that are in no cache: read, decoded and copied to the box, and `parts` with them.
std::vector<Chunk> ChunkCache::load(const Box& box, const std::vector<Key>& keys, BoxParts& parts) {
  const ChunkLayout& layout = box.layout;
  std::vector<Chunk> chunks(keys.size());
  std::vector<ChunkPlace> places;
  if (layout.format && !layout.files && !layout.table) places = ask_places(box, keys);
  std::vector<size_t> part;
  for (size_t i = 0; layout.format && i < keys.size(); ++i) {
    chunks[i].block = layout.make();
    part.push_back(box.add(parts, chunks[i], keys[i]));
  }
  if (layout.format) {
    const py::gil_scoped_release release;
    while (places.size() < keys.size()) places.push_back(layout.find_place(keys[places.size()].index));
    for (size_t i = 0; i < keys.size(); ++i) places[i].out = chunks[i].block.get();
    read_chunks(places, *layout.format, layout.bytes);
    for (size_t i = 0; i < keys.size(); ++i) {
      if (places[i].state != ChunkState::kDecoded) parts.drop(part[i]);
    }
    parts.copy();
  }
  BoxParts rest(box.out);
  bool some_absent = false, some = !layout.format;
  for (size_t i = 0; i < keys.size(); ++i) {
    if (layout.format && places[i].state == ChunkState::kDecoded) continue;
    chunks[i].block.reset();
    if (!layout.format || places[i].state == ChunkState::kFailed) {
      py::object loaded = box.source.attr("load")(box.index(keys[i]));
      if (!loaded.is_none()) chunks[i].array = std::move(loaded);
    }
    some_absent |= !chunks[i].array;
    some = true;
    box.add(rest, chunks[i], keys[i]);
  }
  if (some_absent) box.source.attr("check_still_there")();
  if (some) {
    const py::gil_scoped_release release;
    if (!layout.format) parts.copy();
    rest.copy();
  }
  return chunks;
}

void ChunkCache::keep(const ChunkLayout& layout, const std::vector<Key>& keys,
                      const std::vector<Chunk>& chunks) {
  std::list<Entry> dropped;  // when all is in order: what frees them may run anything
  for (size_t i = 0; i < keys.size(); ++i) {
    const Chunk& chunk = chunks[i];
    const int64_t bytes = chunk.array   ? py::reinterpret_borrow<py::array>(chunk.array).nbytes()
                          : chunk.block ? layout.bytes
                                        : 0;
    entries_.push_front({keys[i], chunks[i], kEntryBytes + bytes});
    places_[keys[i]] = entries_.begin();
    held += entries_.front().bytes;
  }
  decoded += int64_t(keys.size());
  while (held > most_bytes && entries_.size() > 1) {
    held -= entries_.back().bytes;
    places_.erase(entries_.back().key);
    dropped.splice(dropped.begin(), entries_, std::prev(entries_.end()));
  }
}

}  // namespace

void define_chunk_cache(py::module_& module) {
  module.def("set_codec_functions", &set_codec_functions, py::arg("library"), py::arg("addresses"));
  define_chunk_layout(module);
  py::class_<ChunkCache>(module, "ChunkCache")
      .def(py::init<int64_t>(), py::arg("most_bytes"))
      .def("read", &ChunkCache::read, py::arg("source"), py::arg("start"), py::arg("out"))
      .def("clear", &ChunkCache::clear)
      .def("__len__", &ChunkCache::size)
      .def_readonly("most_bytes", &ChunkCache::most_bytes)
      .def_readonly("held", &ChunkCache::held)
      .def_readonly("decoded", &ChunkCache::decoded);
}

}  // namespace fastseg
