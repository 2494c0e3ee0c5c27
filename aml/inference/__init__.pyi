from .segmenter import (
    Segmenter as Segmenter,
)
from .segmenter import (
    to_original as to_original,
)
from .segmenter import (
    usual_precision as usual_precision,
)
from .visualize import (
    PREDICTION as PREDICTION,
)
from .visualize import (
    draw_overlay as draw_overlay,
)
from .visualize import (
    panels as panels,
)
from .visualize import (
    png as png,
)
from .visualize import (
    training_rows as training_rows,
)
