from .meaning import (
    POSITION_WORDS as POSITION_WORDS,
)
from .refer_files import (
    KIND as KIND,
    generate_dataset as generate_dataset,
)
