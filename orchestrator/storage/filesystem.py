"""Files at a local path or in a bucket (s3://, gs://, abfs://, hf://), through pyarrow."""

import contextlib
import os
import posixpath
import socket
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar
from urllib.parse import parse_qsl, urlencode

from aml import files
from aml.errors import NotSaved, Unreachable, UserError
from aml.files import home_expanded, scheme_of
from orchestrator.storage import paths
from orchestrator.utils import announced_wait, check_address, is_address, redact

if TYPE_CHECKING:
    from pyarrow import fs as pyarrow_fs


AZURE = ("abfs", "abfss")

GS_RETRY_S = (90, 5)
"""Seconds for which a silent bucket at gs:// is asked again: patiently, and impatiently."""

GOOGLE_ELSEWHERE = ("GOOGLE_GCLOUD_ADC_PATH_OVERRIDE", "GCE_METADATA_ROOT")
"""Variables by which Google's library looks elsewhere for credentials or a machine's account."""

GOOGLE_METADATA = ("metadata.google.internal", 80)
"""Where a machine of Google's cloud is told its account."""

METADATA_S = 5
"""Seconds for which it may be silent."""

BUCKET_ERRORS = ("AWS Error", "google::cloud", "Azure Error")
"""Words by which pyarrow's errors of a bucket are known."""

VARIABLES = {"s3": "AWS_*", "gs": "GOOGLE_*", **dict.fromkeys(AZURE, "AZURE_*"), "hf": "HF_*"}
"""The variables that say how a bucket is reached, by its scheme."""


def is_bucket_error(error: Exception) -> bool:
    """Return whether an error of pyarrow comes from a bucket, and not from a file in it."""
    return any(mark in str(error) for mark in BUCKET_ERRORS)


class Filesystem:
    """A folder on local disk or on object storage, read and written through pyarrow."""

    READERS: ClassVar[int] = 8
    """Files to read at a time: an object store answers slowly, but many requests at once."""

    fs: "pyarrow_fs.FileSystem"
    """The file system of pyarrow."""
    path: str
    """The folder in `fs`."""
    uri: str
    """The folder as a local path or an address."""
    errors: tuple[type[Exception], ...]
    """What reading raises where the folder does not answer."""

    def __init__(
        self, uri: str | Path, root: Path | None = None, *, impatient: bool = False
    ) -> None:
        """Open a folder; it need not exist.

        Args:
            uri: a local path or the address of a place in a bucket.
            root: the storage root that a relative path is below, or below whose bucket it is.
            impatient: give a silent bucket up after ten seconds instead of a minute and a half, for
                requests that are repeated anyway.

        Raises:
            UserError: the address is not served, holds keys, or cannot be reached.
        """
        from pyarrow import fs

        self.errors = (OSError,)
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
                    self.fs, self.path = _OPENERS[scheme_of(text)](text, impatient)
            except Unreachable:
                raise
            except (OSError, ValueError) as error:  # pyarrow's own error is a ValueError
                raise _unreachable(text, error) from None
            if scheme_of(text) == "hf":
                from huggingface_hub.errors import HfHubHTTPError

                self.errors = HfHubHTTPError.__bases__  # its HTTP client's, and OSError
            if scheme_of(text) == "gs":
                from pyarrow.lib import ArrowException

                self.errors = (OSError, ArrowException)  # of credentials that are none
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
        except self.errors as error:
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
                if scheme_of(self.uri) in AZURE:  # an account without folders moves nothing
                    self.fs.copy_file(draft, self.join(name))
                    self.fs.delete_file(draft)
                else:
                    self.fs.move(draft, self.join(name))
        except self.errors as error:
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
        except self.errors as error:
            raise self._unread(error) from None
        return [posixpath.basename(info.path) for info in found]

    def delete(self, name: str) -> None:
        """Delete a file of the folder."""
        self.fs.delete_file(self.join(name))

    def is_silent(self, error: Exception) -> bool:
        """Return whether an error says that a bucket does not answer, and nothing of its files."""
        if scheme_of(self.uri) == "hf":
            return isinstance(error, self.errors[0])  # OSError may be a damaged file
        return is_bucket_error(error)

    def check_kind(self, given_as: str) -> None:
        """Check that the folder is one that is written, before anything is.

        Of a local one, as `aml.files.check_kind_of_folder` does, that it is a folder or nothing.

        Args:
            given_as: how the person gave the folder, as --out.

        Raises:
            UserError: something else is there, or the address is only read.
        """
        if scheme_of(self.uri) == "hf":
            raise UserError(
                f"{given_as} is {redact(self.uri)}, which is only read; write to a folder, and "
                "upload that with: hf upload"
            )
        if not is_address(self.uri):
            files.check_kind_of_folder(self.path, given_as)

    def check_writable(self, given_as: str, wanted: int) -> None:
        """Check, as `aml.files.check_folder` does, that a local folder takes so many bytes.

        Of a bucket nothing is known before something is written there.

        Args:
            given_as: how the person gave the folder, as --out.
            wanted: bytes.
        """
        self.check_kind(given_as)
        if not is_address(self.uri):
            files.check_folder(self.path, given_as, wanted)

    def _unread(self, error: Exception) -> Exception:
        if is_address(self.uri):
            return self.unreachable(error)
        return UserError(
            f"{self.uri} cannot be read ({os.strerror(getattr(error, 'errno', 0) or 0)}); give a "
            "folder of shards"
        )


def _unreachable(uri: str, error: Exception) -> Unreachable:
    variables = VARIABLES.get(scheme_of(uri), VARIABLES["s3"])
    return Unreachable(
        f"{redact(uri)} cannot be reached ({_reason(error)}); check the endpoint, the "
        f"bucket and what {variables} is exported here and on the cluster"
    )


def _reason(error: Exception) -> str:
    return " ".join(redact(error).split())[:200]


def _open_s3(address: str, impatient: bool) -> tuple["pyarrow_fs.FileSystem", str]:
    """Return the file system of an address and the path in it.

    An impatient one makes 3 tries a request instead of 31, of 3 s each.
    """
    from pyarrow import fs

    s3, path = fs.FileSystem.from_uri(address)
    if impatient:
        _, (options,) = s3.__reduce__()
        s3 = fs.S3FileSystem(
            **options, retry_strategy=fs.AwsStandardS3RetryStrategy(max_attempts=3)
        )
    return s3, path


def _open_gs(address: str, impatient: bool) -> tuple["pyarrow_fs.FileSystem", str]:
    """Return the file system of an address and the path in it.

    Credentials are not looked for where the connection is not encrypted, as an emulator's.
    """
    from pyarrow import fs

    place, _, query = address.partition("?")
    options = dict(parse_qsl(query))
    options["retry_limit_seconds"] = str(GS_RETRY_S[impatient])
    if options.get("scheme") == "http":
        place = place.replace("://", "://anonymous@", 1)
    else:
        _check_google_credentials(address)
    return fs.FileSystem.from_uri(f"{place}?{urlencode(options)}")


def _check_google_credentials(address: str) -> None:
    """Check that there are credentials where Google's library looks for them.

    It asks a machine's account for more than a minute before it says that there is none.

    Raises:
        Unreachable: There are none, and this is no machine of Google's cloud.
    """
    if any(name in os.environ for name in GOOGLE_ELSEWHERE):
        return
    named = os.environ.get("GOOGLE_APPLICATION_CREDENTIALS")
    if named and not Path(named).is_file():
        raise Unreachable(
            f"{redact(address)} cannot be reached: GOOGLE_APPLICATION_CREDENTIALS names a file "
            "that is not here; export the path of one with a key"
        )
    login = Path.home() / ".config" / "gcloud" / "application_default_credentials.json"
    if named or login.is_file():
        return
    try:
        socket.create_connection(GOOGLE_METADATA, timeout=METADATA_S).close()
    except OSError:
        raise Unreachable(
            f"{redact(address)} cannot be reached without credentials, and this is no machine of "
            "Google's cloud; export GOOGLE_APPLICATION_CREDENTIALS=FILE here and on the cluster, "
            "or type: gcloud auth application-default login"
        ) from None


def _open_azure(address: str, _impatient: bool) -> tuple["pyarrow_fs.FileSystem", str]:
    """Return the file system of an address and the path in it.

    The account's key or the SAS token is taken from AZURE_STORAGE_KEY or AZURE_STORAGE_SAS_TOKEN;
    without them the library looks for credentials as Azure's other programs do.
    """
    from pyarrow import fs

    place, _mark, query = address.partition("?")
    options = dict(parse_qsl(query))
    container, rest = place.partition("://")[2].split("@", 1)
    host, _slash, inner = rest.partition("/")
    account, _kind, domain = host.split(".", 2)
    endpoint, scheme = options.get("endpoint_override"), options.get("scheme", "https")
    key = os.environ.get("AZURE_STORAGE_KEY") or None
    azure = fs.AzureFileSystem(
        account,
        account_key=key,
        sas_token=None if key else os.environ.get("AZURE_STORAGE_SAS_TOKEN") or None,
        blob_storage_authority=endpoint or f".blob.{domain}",
        dfs_storage_authority=endpoint or f".dfs.{domain}",
        blob_storage_scheme=scheme,
        dfs_storage_scheme=scheme,
    )
    return azure, posixpath.join(container, inner).rstrip("/")


def _open_hub(address: str, _impatient: bool) -> tuple["pyarrow_fs.FileSystem", str]:
    """Return the file system of an address of Hugging Face's hub and the path in it."""
    from huggingface_hub import HfFileSystem
    from pyarrow import fs

    hub = HfFileSystem(endpoint=os.environ.get("HF_ENDPOINT"))
    return fs.PyFileSystem(fs.FSSpecHandler(hub)), address.removeprefix("hf://").rstrip("/")


_OPENERS = {
    "s3": _open_s3,
    "gs": _open_gs,
    "abfs": _open_azure,
    "abfss": _open_azure,
    "hf": _open_hub,
}
