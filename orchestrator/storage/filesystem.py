"""Files at a local path or an s3:// address, through pyarrow."""

import posixpath
from pathlib import Path

from aml.errors import Unreachable, UserError
from orchestrator.storage import paths
from orchestrator.storage.uri import refuse_keys

READERS = 8

"""Files looked at at a time: object stores answer slowly, but many at once."""


class Filesystem:
    """A folder on local disk or on object storage, through pyarrow's file systems. Relative ones are relative to root, or to root's bucket.

    A bucket that is silent is asked for a minute and a half before it is given up, an impatient one's for ten seconds: for what is tried again anyway.
    """

    def __init__(self, uri: str | Path, root: Path | None = None, *, impatient: bool = False):
        from pyarrow import fs

        text = str(uri)
        if "://" not in text:
            path = (root or Path()) / Path(text).expanduser()
            text = (root and paths.bucket_of(path)) or str(path)
        if "://" not in text:
            self.fs, self.path = fs.LocalFileSystem(), str(Path(text).absolute())
        else:
            refuse_keys(text)
            try:
                self.fs, self.path = fs.FileSystem.from_uri(text)
            except (OSError, ValueError) as error:  # pyarrow's own error is a ValueError
                raise self.away(text, error) from None
            if impatient:
                self.fs = _soon_given_up(self.fs)
        self.uri = text

    @staticmethod
    def away(uri: str, error: Exception) -> Unreachable:
        why = " ".join(str(error).split())[:200]
        return Unreachable(
            f"{uri} cannot be reached ({why}); check the endpoint, the bucket and what AWS_* is exported here and on the cluster"
        )

    def join(self, name: str) -> str:
        return posixpath.join(self.path, name)

    def read(self, name: str) -> bytes | None:
        """The file's bytes; None where it is absent."""
        try:
            with self.fs.open_input_stream(self.join(name)) as stream:
                return stream.read()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise self.away(self.uri, error) if "://" in self.uri else error from None

    def write(self, name: str, data: bytes) -> None:
        """Complete or absent: local files are written beside and renamed; object stores do so themselves."""
        draft = self.join(name + ".tmp")
        try:
            self.fs.create_dir(self.path)
            with self.fs.open_output_stream(draft) as stream:
                stream.write(data)
            self.fs.move(draft, self.join(name))
        except OSError as error:
            raise self.away(self.uri, error) if "://" in self.uri else error from None

    def names(self) -> list[str]:
        """The files of the folder; none where it is not there."""
        from pyarrow import fs

        try:
            return [
                posixpath.basename(i.path)
                for i in self.fs.get_file_info(fs.FileSelector(self.path, allow_not_found=True))
            ]
        except OSError as error:
            raise self.away(self.uri, error) if "://" in self.uri else error from None

    def clear_unfinished(self, keep: set[str]) -> None:
        """Remove what an interrupted conversion left, but `keep`. UserError where the folder holds anything else: it is somebody's."""
        names = self.names()
        foreign = sorted(
            n for n in names if not n.endswith((".parquet", ".tmp")) and n != "vocabulary.json"
        )
        if foreign:
            raise UserError(
                f"{self.uri} holds {foreign[0]} ({len(foreign)} files that are no shards); give --out a folder of its own"
            )
        for name in set(names) - keep:
            self.fs.delete_file(self.join(name))


def _soon_given_up(s3):
    """The same file system with 3 tries a request, 3 s each, in place of 31."""
    from pyarrow import fs

    _, (options,) = s3.__reduce__()
    return fs.S3FileSystem(**options, retry_strategy=fs.AwsStandardS3RetryStrategy(max_attempts=3))
