#include <errno.h>
#include <fcntl.h>
#include <pybind11/stl.h>
#include <unistd.h>

#include <memory>

#include "bindings/bindings.h"
#include "gguf/loadable.h"
#include "gguf/model_file.h"
#include "gguf/types.h"
#include "gguf/virtual_file.h"

namespace py = pybind11;

namespace remoe::bindings {
namespace {

// Paths and values are bytes to us; a stray one must not turn into an error about Unicode.
py::str Text(const std::string& bytes, const char* errors) {
  return py::reinterpret_steal<py::str>(
      PyUnicode_DecodeUTF8(bytes.data(), static_cast<Py_ssize_t>(bytes.size()), errors));
}

template <typename T>
T Unwrap(Result<T> result) {
  ThrowIfError(result.status());
  return std::move(result.value());
}

std::vector<Path> Paths(const ModelFile& model) {
  std::vector<Path> paths;
  for (const std::string& path : model.paths()) paths.push_back({path});
  return paths;
}

// A virtual file whose dense bytes come from plain preads, to look at what llama.cpp is shown.
class PlainVirtualFile {
 public:
  PlainVirtualFile(std::shared_ptr<ModelFile> model, Overlay overlay) : model_(std::move(model)) {
    file_.emplace(Unwrap(VirtualFile::Make(
        model_.get(), std::move(overlay),
        [this](int shard, uint64_t offset, uint64_t n_bytes, uint8_t* dest) {
          return Read(model_->paths()[static_cast<size_t>(shard)], offset, n_bytes, dest);
        })));
  }

  py::bytes Pread(uint64_t offset, uint64_t n_bytes) {
    if (offset >= file_->size()) return py::bytes();
    std::string bytes(std::min(n_bytes, file_->size() - offset), '\0');
    if (file_->Pread(offset, reinterpret_cast<uint8_t*>(bytes.data()), bytes.size()) < 0) {
      ThrowIfError(file_->status());
    }
    return py::bytes(bytes);
  }

  const VirtualFile& file() const { return *file_; }

 private:
  static Status Read(const std::string& path, uint64_t offset, uint64_t n_bytes, uint8_t* dest) {
    const int fd = open(path.c_str(), O_RDONLY | O_CLOEXEC);
    if (fd < 0) return Status::Io("cannot open " + path, errno);
    Status status;
    while (n_bytes > 0 && status.ok()) {
      const ssize_t got = pread(fd, dest, n_bytes, static_cast<off_t>(offset));
      if (got < 0 && errno == EINTR) continue;
      if (got < 0) status = Status::Io("cannot read " + path, errno);
      if (got == 0) status = Status(Code::kCorrupt, path + " became shorter");
      if (got <= 0) continue;
      dest += got;
      offset += static_cast<uint64_t>(got);
      n_bytes -= static_cast<uint64_t>(got);
    }
    close(fd);
    return status;
  }

  std::shared_ptr<ModelFile> model_;
  std::optional<VirtualFile> file_;
};

}  // namespace

void RegisterGguf(py::module_& module) {
  module.def(
      "type_traits",
      [](uint32_t ggml_type) -> std::optional<std::tuple<std::string, uint32_t, uint32_t>> {
        const TypeTraits* traits = FindType(ggml_type);
        if (traits == nullptr) return std::nullopt;
        return std::make_tuple(traits->name, traits->block_weights, traits->block_bytes);
      },
      py::arg("ggml_type"));

  py::class_<Tensor>(module, "Tensor")
      .def_readonly("name", &Tensor::name)
      .def_readonly("type", &Tensor::type)
      .def_property_readonly("type_name", [](const Tensor& t) { return FindType(t.type)->name; })
      .def_property_readonly(
          "shape", [](const Tensor& t) { return std::vector<uint64_t>(t.ne, t.ne + t.n_dims); })
      .def_readonly("shard", &Tensor::shard)
      .def_readonly("offset", &Tensor::offset)
      .def_readonly("n_bytes", &Tensor::n_bytes);

  py::class_<ExpertMatrix>(module, "ExpertMatrix")
      .def_property_readonly("matrix", [](const ExpertMatrix& m) { return MatrixName(m.matrix); })
      .def_readonly("tensor", &ExpertMatrix::tensor)
      .def_readonly("shard", &ExpertMatrix::shard)
      .def_readonly("offset", &ExpertMatrix::offset)
      .def_readonly("expert_bytes", &ExpertMatrix::expert_bytes);

  py::class_<ExpertLayer>(module, "ExpertLayer")
      .def_readonly("block", &ExpertLayer::block)
      .def_readonly("n_experts", &ExpertLayer::n_experts)
      .def_readonly("matrices", &ExpertLayer::matrices)
      .def_property_readonly("expert_bytes", &ExpertLayer::expert_bytes);

  py::class_<ModelFile, std::shared_ptr<ModelFile>>(module, "ModelFile")
      .def_static(
          "open",
          [](const Path& path) {
            std::optional<Result<ModelFile>> model;
            {
              const py::gil_scoped_release released;
              model.emplace(ModelFile::Open(path.bytes));
            }
            return std::make_shared<ModelFile>(Unwrap(std::move(*model)));
          },
          py::arg("path"))
      .def("check", [](const ModelFile& m) { ThrowIfError(CheckLoadable(m)); })
      .def("check_no_adapter", [](const ModelFile& m) { ThrowIfError(CheckNoAdapter(m)); })
      .def_property_readonly("paths", &Paths)
      .def_property_readonly("file_bytes", &ModelFile::file_bytes)
      .def_property_readonly("tensors", &ModelFile::tensors)
      .def(
          "find",
          [](const ModelFile& m, const std::string& name) -> std::optional<Tensor> {
            const Tensor* tensor = m.Find(name);
            return tensor == nullptr ? std::nullopt : std::optional<Tensor>(*tensor);
          },
          py::arg("name"))
      .def_property_readonly("key_names", &ModelFile::KeyNames)
      .def("unsigned", &ModelFile::Unsigned, py::arg("key"))
      .def("unsigned_array", &ModelFile::UnsignedArray, py::arg("key"))
      .def(
          "string",
          [](const ModelFile& m, const std::string& key) -> std::optional<py::str> {
            const auto value = m.String(key);
            return value ? std::optional<py::str>(Text(*value, "replace")) : std::nullopt;
          },
          py::arg("key"))
      .def(
          "strings",
          [](const ModelFile& m, const std::string& key) -> std::optional<std::vector<py::str>> {
            const auto values = m.StringArray(key);
            if (!values) return std::nullopt;
            std::vector<py::str> texts;
            texts.reserve(values->size());
            for (const std::string& value : *values) texts.push_back(Text(value, "replace"));
            return texts;
          },
          py::arg("key"))
      .def("number", &ModelFile::Number, py::arg("key"))
      .def("integers", &ModelFile::IntegerArray, py::arg("key"))
      .def_property_readonly("version", &ModelFile::version)
      .def_property_readonly("alignment", &ModelFile::alignment)
      .def_property_readonly("architecture",
                             [](const ModelFile& m) { return Text(m.architecture(), "replace"); })
      .def_property_readonly("n_experts_used", &ModelFile::n_experts_used)
      .def_property_readonly("expert_layers",
                             [](const ModelFile& m) { return Unwrap(m.ExpertLayers()); })
      .def_property_readonly("expert_bytes", &ModelFile::expert_bytes)
      .def_property_readonly("has_experts", &ModelFile::has_experts)
      .def_property_readonly("n_keys", &ModelFile::n_keys)
      .def_property_readonly("key_bytes",
                             [](const ModelFile& file) { return py::bytes(file.key_bytes()); })
      .def_property_readonly("dense_bytes", &ModelFile::dense_bytes);

  py::class_<PlainVirtualFile>(module, "VirtualFile")
      .def(py::init([](std::shared_ptr<ModelFile> model,
                       const std::map<std::string, py::bytes>& overlay) {
             Overlay bytes;
             for (const auto& [name, value] : overlay) {
               const std::string_view view = value;
               bytes.emplace(name, std::vector<uint8_t>(view.begin(), view.end()));
             }
             return std::make_unique<PlainVirtualFile>(std::move(model), std::move(bytes));
           }),
           py::arg("model"), py::arg("overlay") = std::map<std::string, py::bytes>())
      .def("pread", &PlainVirtualFile::Pread, py::arg("offset"), py::arg("n_bytes"))
      .def_property_readonly("size", [](const PlainVirtualFile& f) { return f.file().size(); })
      .def_property_readonly("dense_bytes_read",
                             [](const PlainVirtualFile& f) { return f.file().dense_bytes_read(); })
      .def_property_readonly("expert_bytes_skipped", [](const PlainVirtualFile& f) {
        return f.file().expert_bytes_skipped();
      });
}

}  // namespace remoe::bindings
