import os
from collections.abc import Mapping
from typing import final

# --- gguf -----------------------------------------------------------------------------------------

def type_traits(ggml_type: int) -> tuple[str, int, int] | None:
    """Return a ggml type's name, weights per block and bytes per block; None for an unknown type."""

@final
class Tensor:
    @property
    def name(self) -> str: ...
    @property
    def type(self) -> int:
        """The ggml type's number."""
    @property
    def type_name(self) -> str: ...
    @property
    def shape(self) -> list[int]:
        """Extents, the fastest-varying first."""
    @property
    def shard(self) -> int:
        """Index into `ModelFile.paths`."""
    @property
    def offset(self) -> int:
        """Bytes from the start of the shard's file."""
    @property
    def n_bytes(self) -> int: ...

@final
class ExpertMatrix:
    """One matrix of a layer's experts; expert e lies at `offset + e * expert_bytes` of its shard."""

    @property
    def matrix(self) -> str:
        """One of up, gate, down, gate_up."""
    @property
    def tensor(self) -> int:
        """Index into `ModelFile.tensors`."""
    @property
    def shard(self) -> int: ...
    @property
    def offset(self) -> int: ...
    @property
    def expert_bytes(self) -> int: ...

@final
class ExpertLayer:
    @property
    def block(self) -> int:
        """N of blk.N."""
    @property
    def n_experts(self) -> int: ...
    @property
    def matrices(self) -> list[ExpertMatrix]: ...
    @property
    def expert_bytes(self) -> int:
        """Bytes of one expert, all its matrices."""

@final
class ModelFile:
    """What a GGUF, or a set of split shards, says of itself, checked against the files."""

    @staticmethod
    def open(path: str | os.PathLike[str]) -> ModelFile:
        """Read and check the headers of a GGUF or, given the first shard, of all shards.

        Raises ModelError for a damaged or hostile file, UnsupportedError for a version or byte order
        that cannot be read, InputError for something that is no file, ReadError from storage.
        """

    @property
    def paths(self) -> list[str]: ...
    @property
    def file_bytes(self) -> list[int]: ...
    @property
    def tensors(self) -> list[Tensor]:
        """All shards' tensors, in file order."""
    def find(self, name: str) -> Tensor | None: ...
    @property
    def key_names(self) -> list[str]: ...
    def unsigned(self, key: str) -> int | None:
        """Return an integer or boolean key's value; None if absent, negative or of another kind."""
    def unsigned_array(self, key: str) -> list[int] | None: ...
    def string(self, key: str) -> str | None: ...
    @property
    def version(self) -> int: ...
    @property
    def alignment(self) -> int: ...
    @property
    def architecture(self) -> str: ...
    @property
    def n_experts_used(self) -> int:
        """Experts per token, the largest where it differs by layer; 0 for a dense model."""
    @property
    def expert_layers(self) -> list[ExpertLayer]:
        """The layers whose experts can be streamed.

        Raises UnsupportedError naming the tensor when a layer's matrices do not fit together.
        """
    @property
    def expert_bytes(self) -> int: ...
    @property
    def dense_bytes(self) -> int: ...

@final
class VirtualFile:
    """The model as llama.cpp is shown it, with plain reads behind it, to look at."""

    def __init__(self, model: ModelFile, overlay: Mapping[str, bytes] = ...) -> None: ...
    def pread(self, offset: int, n_bytes: int) -> bytes:
        """Return bytes of the virtual file; those of experts come as zeros, unread."""
    @property
    def size(self) -> int: ...
    @property
    def dense_bytes_read(self) -> int: ...
    @property
    def expert_bytes_skipped(self) -> int: ...
