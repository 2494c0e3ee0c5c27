from .meaning import (
    POSITION_WORDS as POSITION_WORDS,
)
from .refer_files import (
    generate_dataset as generate_dataset,
)
