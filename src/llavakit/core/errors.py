"""Every error a user can see, in one tree.

Each class has a stable ``code``; ``docs/errors.md`` has one anchor per code, and the command line exits
with ``exit_code``. A message has four parts: what failed, what was found, what was needed, what to do.

LlavakitError
├── ConfigError                 a config file or an argument cannot be used
│   └── UnsupportedAttributeError   an attribute of transformers' classes that is not there, or cannot be set
├── WeightsError                a checkpoint cannot be loaded
│   ├── FormatError             the file is not what its name says, truncated or hostile
│   ├── MissingTensorError      tensors the model needs are not in the checkpoint
│   ├── UnexpectedTensorError   tensors the model does not know are in the checkpoint
│   └── ShapeError              a tensor has another shape than the configuration asks for
├── StoreError                  the local model store or the Hub
│   ├── ModelNotFoundError      no such model, here or there
│   ├── DownloadError           the network or the Hub failed; what was downloaded is kept
│   └── DiskFullError           not enough space for the download
├── RequestError                a request cannot be served as asked
│   ├── BadImageError           a picture cannot be decoded or is over a limit
│   ├── ImageSourceError        a picture cannot be fetched or may not be
│   ├── PromptError             messages or placeholders that contradict each other
│   ├── ContextOverflowError    prompt and answer do not fit into the context
│   ├── SamplingError           sampling settings out of range or contradictory
│   ├── ConstraintError         the form an answer must have cannot be used
│   ├── UnsupportedFieldError   a field of an API that is not done here
│   └── RefusedError            a server says no, with a status of HTTP
├── CapacityError               the machine lacks memory or a device
│   └── OverloadedError         too many requests wait; try again
│       └── UnloadedError       the model was let go of on the way; ask again
├── AccessError                 a key is missing or wrong, or a host or origin is not allowed
├── NonFiniteError              NaN or infinity in weights or activations
└── MissingDependencyError      an optional package is needed for this command
"""

from __future__ import annotations

__all__ = [
    "AccessError",
    "BadImageError",
    "CapacityError",
    "ConfigError",
    "ConstraintError",
    "ContextOverflowError",
    "DiskFullError",
    "DownloadError",
    "FormatError",
    "ImageSourceError",
    "LlavakitError",
    "MissingDependencyError",
    "MissingTensorError",
    "ModelNotFoundError",
    "NonFiniteError",
    "OverloadedError",
    "PromptError",
    "RefusedError",
    "RequestError",
    "SamplingError",
    "ShapeError",
    "StoreError",
    "UnexpectedTensorError",
    "UnloadedError",
    "UnsupportedAttributeError",
    "UnsupportedFieldError",
    "WeightsError",
]


class LlavakitError(Exception):
    """Base of every error llavakit raises on purpose.

    Attributes
    ----------
    code : str
        Stable slug, the same in every release; an anchor in ``docs/errors.md``.
    exit_code : int
        Exit status of the command line.
    """

    code = "error"
    exit_code = 1


class ConfigError(LlavakitError):
    """A configuration file or an argument cannot be used."""

    code = "config"
    exit_code = 2


class UnsupportedAttributeError(ConfigError, AttributeError):
    """An attribute that transformers' classes have is not there, or cannot be set to this value."""

    code = "unsupported-attribute"


class WeightsError(LlavakitError):
    """A checkpoint cannot be loaded."""

    code = "weights"
    exit_code = 3


class FormatError(WeightsError):
    """The file is not what its name says, is truncated, or is hostile."""

    code = "weights-format"


class MissingTensorError(WeightsError):
    """Tensors that the model needs are not in the checkpoint."""

    code = "weights-missing"


class UnexpectedTensorError(WeightsError):
    """Tensors that the model does not know are in the checkpoint."""

    code = "weights-unexpected"


class ShapeError(WeightsError):
    """A tensor has another shape than the configuration asks for."""

    code = "weights-shape"


class StoreError(LlavakitError):
    """The local model store or the Hub failed."""

    code = "store"
    exit_code = 4


class ModelNotFoundError(StoreError):
    """No such model in the local store, on the disk or on the Hub."""

    code = "model-not-found"


class DownloadError(StoreError):
    """The network or the Hub failed; finished parts are kept and resumed."""

    code = "download"


class DiskFullError(StoreError):
    """Not enough disk space for what was asked."""

    code = "disk-full"


class RequestError(LlavakitError):
    """A request cannot be served as asked.

    Attributes
    ----------
    param : str, optional
        The field it is about, of a request that came as JSON.
    """

    code = "request"
    exit_code = 5
    param: str | None = None


class BadImageError(RequestError):
    """A picture cannot be decoded or is over a limit."""

    code = "bad-image"


class ImageSourceError(RequestError):
    """A picture cannot be fetched, or fetching it is not allowed."""

    code = "image-source"


class PromptError(RequestError):
    """Messages, roles or image placeholders contradict each other."""

    code = "prompt"


class ContextOverflowError(RequestError):
    """Prompt and answer do not fit into the model's context."""

    code = "context-overflow"


class SamplingError(RequestError):
    """Sampling settings are out of range or contradict each other."""

    code = "sampling"


class ConstraintError(RequestError):
    """The form that an answer must have cannot be used, or cannot be kept."""

    code = "constraint"


class UnsupportedFieldError(RequestError):
    """A field of an API that is not done here; it is refused rather than ignored."""

    code = "unsupported-field"


class RefusedError(RequestError):
    """A server says no: too large, no such path, a host that is not allowed, or what a running server answered.

    Attributes
    ----------
    status : int
        Of HTTP.
    code : str
        ``refused``, or the more telling one that the server gave.
    """

    code = "refused"

    def __init__(self, message: str, *, status: int = 400, code: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        if code is not None:
            self.code = code


class CapacityError(LlavakitError):
    """The machine lacks the memory or the device that was asked for."""

    code = "capacity"
    exit_code = 6


class OverloadedError(CapacityError):
    """Too many requests wait already.

    Attributes
    ----------
    retry_after_s : int
        When it is worth trying again.
    """

    code = "overloaded"

    def __init__(self, message: str, *, retry_after_s: int = 1) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class UnloadedError(OverloadedError):
    """The model was let go of while the request was on its way; it can be loaded again."""

    code = "unloaded"


class AccessError(LlavakitError):
    """A key is missing or wrong, or the host or origin of a request is not allowed."""

    code = "access"
    exit_code = 9


class NonFiniteError(LlavakitError):
    """NaN or infinity where finite numbers are needed."""

    code = "non-finite"
    exit_code = 7


class MissingDependencyError(LlavakitError):
    """An optional package that this command needs is not installed."""

    code = "missing-dependency"
    exit_code = 8
