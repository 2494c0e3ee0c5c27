from .published import (
    load_published as load_published,
)
from .registry import (
    build_model as build_model,
)
from .registry import (
    model_class as model_class,
)
from .registry import (
    model_options as model_options,
)
