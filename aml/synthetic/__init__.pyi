from .photographs.dataset import (
    compose_dataset as compose_dataset,
)
from .photographs.material import (
    content_key as content_key,
)
from .refer_files import (
    KIND as KIND,
    generate_dataset as generate_dataset,
)
