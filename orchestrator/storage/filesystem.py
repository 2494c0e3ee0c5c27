"""Files at a local path or an s3:// address, through pyarrow."""

import contextlib
import os
import posixpath
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from aml import files
from aml.errors import NotSaved, Unreachable, UserError
from aml.files import home_expanded
from orchestrator.storage import paths
from orchestrator.utils import announced_wait, check_address, is_address, redact

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
            UserError: the address is not served, holds keys, or cannot be reached.
        """
        from pyarrow import fs

        text = str(uri)
        check_address(text)
        if not is_address(text):
            path = (root or Path()) / home_expanded(text)
            text = (root and paths.bucket_of(path)) or str(path)
        if not is_address(text):
            self.fs = fs.LocalFileSystem()
            self.path = str(Path(text).absolute())
        else:
            try:
                with announced_wait(f"{redact(text)} to answer"):
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

    def answering(self) -> AbstractContextManager[None]:
        """Return a `with` block for a request, which says what it waits for where that is long."""
        if "://" not in self.uri:
            return nullcontext()
        return announced_wait(f"{redact(self.uri)} to answer")

    def join(self, name: str) -> str:
        """Return the path in `fs` of a file in the folder."""
        return posixpath.join(self.path, name)

    def read(self, name: str) -> bytes | None:
        """Return the bytes of a file; None where it is absent."""
        try:
            with self.answering(), self.fs.open_input_stream(self.join(name)) as stream:
                return stream.read()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise self._unread(error) from None

    def write(self, name: str, data: bytes) -> None:
        """Write a file so that it is complete or absent.

        A local file is written under another name and then renamed; object stores write whole
        objects anyway.
        """
        draft = self.join(name + files.DRAFT)
        try:
            with self.answering():
                self.fs.create_dir(self.path)
                with self.fs.open_output_stream(draft) as stream:
                    stream.write(data)
                self.fs.move(draft, self.join(name))
        except OSError as error:
            if is_address(self.uri):
                raise self.unreachable(error) from None
            with contextlib.suppress(OSError):
                self.fs.delete_file(draft)
            raise NotSaved(files.write_failure(Path(self.join(name)), error, len(data))) from error

    def names(self) -> list[str]:
        """Return the names of the files in the folder; none where the folder does not exist."""
        from pyarrow import fs

        try:
            with self.answering():
                found = self.fs.get_file_info(fs.FileSelector(self.path, allow_not_found=True))
        except OSError as error:
            raise self._unread(error) from None
        return [posixpath.basename(info.path) for info in found]

    def delete(self, name: str) -> None:
        """Delete a file of the folder."""
        self.fs.delete_file(self.join(name))

    def check_kind(self, given_as: str) -> None:
        """Check, as `aml.files.check_kind_of_folder` does, that a local folder is one or nothing.

        Args:
            given_as: how the person gave the folder, as --out.
        """
        if not is_address(self.uri):
            files.check_kind_of_folder(self.path, given_as)

    def check_writable(self, given_as: str, wanted: int) -> None:
        """Check, as `aml.files.check_folder` does, that a local folder takes so many bytes.

        Of a bucket nothing is known before something is written there.

        Args:
            given_as: how the person gave the folder, as --out.
            wanted: bytes.
        """
        if not is_address(self.uri):
            files.check_folder(self.path, given_as, wanted)

    def _unread(self, error: OSError) -> Exception:
        if is_address(self.uri):
            return self.unreachable(error)
        return UserError(
            f"{self.uri} cannot be read ({os.strerror(error.errno or 0)}); give a folder of shards"
        )


def _unreachable(uri: str, error: Exception) -> Unreachable:
    return Unreachable(
        f"{redact(uri)} cannot be reached ({_reason(error)}); check the endpoint, the "
        "bucket and what AWS_* is exported here and on the cluster"
    )


def _reason(error: Exception) -> str:
    return " ".join(redact(error).split())[:200]


def _with_few_retries(s3: "pyarrow_fs.FileSystem") -> "pyarrow_fs.FileSystem":
    """Return the same S3 file system with 3 tries a request instead of 31, of 3 s each."""
    from pyarrow import fs

    _, (options,) = s3.__reduce__()
    return fs.S3FileSystem(**options, retry_strategy=fs.AwsStandardS3RetryStrategy(max_attempts=3))
