from .base import (
    Features as Features,
    Model as Model,
    find_class as find_class,
)
from .contract import (
    check as check,
)
from .options import (
    MODELS as MODELS,
    resolved as resolved,
)
from .published.checkpoint import (
    load_published as load_published,
    open_published as open_published,
    published_tokenizer as published_tokenizer,
)
from .registry import (
    build_model as build_model,
    make_options as make_options,
)
