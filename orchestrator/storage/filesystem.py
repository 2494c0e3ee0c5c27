"""Files at a local path or an s3:// address, through pyarrow."""

import posixpath
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from aml.errors import Unreachable, UserError
from orchestrator.storage import paths

if TYPE_CHECKING:
    from pyarrow import fs as pyarrow_fs


class Filesystem:
    """A folder on local disk or on object storage, read and written through pyarrow."""

    READERS: ClassVar[int] = 8
    """Files to read at a time: an object store answers slowly, but many requests at once."""

    fs: "pyarrow_fs.FileSystem"
    """The file system of pyarrow."""
    path: str
    """The folder in `fs`."""
    uri: str
    """The folder as a local path or an s3:// address."""

    def __init__(
        self, uri: str | Path, root: Path | None = None, *, impatient: bool = False
    ) -> None:
        """Open a folder; it need not exist.

        Args:
            uri: a local path or an s3:// address.
            root: the storage root that a relative path is below, or below whose bucket it is.
            impatient: give a silent bucket up after ten seconds instead of a minute and a half, for
                requests that are repeated anyway.

        Raises:
            UserError: the address holds keys, or cannot be reached.
        """
        from pyarrow import fs

        text = str(uri)
        if "://" not in text:
            path = (root or Path()) / Path(text).expanduser()
            text = (root and paths.bucket_of(path)) or str(path)
        if "://" not in text:
            self.fs = fs.LocalFileSystem()
            self.path = str(Path(text).absolute())
        else:
            paths.refuse_keys(text)
            try:
                self.fs, self.path = fs.FileSystem.from_uri(text)
            except (OSError, ValueError) as error:  # pyarrow's own error is a ValueError
                raise _unreachable(text, error) from None
            if impatient:
                self.fs = _with_few_retries(self.fs)
        self.uri = text

    def unreachable(self, error: Exception, *names: str) -> Unreachable:
        """Return the error to raise for a file in the folder, or the folder, that gives nothing.

        Args:
            error: what pyarrow raised.
            names: the path of the file in the folder; empty for the folder itself.
        """
        return _unreachable(paths.join_uri(self.uri, *names) if names else self.uri, error)

    def join(self, name: str) -> str:
        """Return the path in `fs` of a file in the folder."""
        return posixpath.join(self.path, name)

    def read(self, name: str) -> bytes | None:
        """Return the bytes of a file; None where it is absent."""
        try:
            with self.fs.open_input_stream(self.join(name)) as stream:
                return stream.read()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise self._named(error) from None

    def write(self, name: str, data: bytes) -> None:
        """Write a file so that it is complete or absent.

        A local file is written under another name and then renamed; object stores write whole
        objects anyway.
        """
        draft = self.join(name + ".tmp")
        try:
            self.fs.create_dir(self.path)
            with self.fs.open_output_stream(draft) as stream:
                stream.write(data)
            self.fs.move(draft, self.join(name))
        except OSError as error:
            raise self._named(error) from None

    def names(self) -> list[str]:
        """Return the names of the files in the folder; none where the folder does not exist."""
        from pyarrow import fs

        try:
            found = self.fs.get_file_info(fs.FileSelector(self.path, allow_not_found=True))
        except OSError as error:
            raise self._named(error) from None
        return [posixpath.basename(info.path) for info in found]

    def clear_unfinished(self, keep: set[str]) -> None:
        """Delete what an interrupted conversion left, except for some files.

        Raises:
            UserError: the folder holds other files, so it belongs to somebody else.
        """
        names = self.names()
        foreign = sorted(
            n for n in names if not n.endswith((".parquet", ".tmp")) and n != "vocabulary.json"
        )
        if foreign:
            raise UserError(
                f"{self.uri} holds {foreign[0]} ({len(foreign)} files that are no shards); "
                "give --out a folder of its own"
            )
        for name in set(names) - keep:
            self.fs.delete_file(self.join(name))

    def _named(self, error: OSError) -> Exception:
        return self.unreachable(error) if "://" in self.uri else error


def _unreachable(uri: str, error: Exception) -> Unreachable:
    why = " ".join(str(error).split())[:200]
    return Unreachable(
        f"{uri} cannot be reached ({why}); check the endpoint, the bucket and what AWS_* is "
        "exported here and on the cluster"
    )


def _with_few_retries(s3: "pyarrow_fs.FileSystem") -> "pyarrow_fs.FileSystem":
    """Return the same S3 file system with 3 tries a request instead of 31, of 3 s each."""
    from pyarrow import fs

    _, (options,) = s3.__reduce__()
    return fs.S3FileSystem(**options, retry_strategy=fs.AwsStandardS3RetryStrategy(max_attempts=3))
