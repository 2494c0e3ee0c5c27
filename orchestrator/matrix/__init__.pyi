from .command import (
    run_matrix as run_matrix,
)
from .plan import (
    describe_matrix as describe_matrix,
)
