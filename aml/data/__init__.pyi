from .augment import (
    AUGMENTATIONS as AUGMENTATIONS,
)
from .corruptions import (
    CORRUPTIONS as CORRUPTIONS,
)
from .corruptions import (
    corrupt as corrupt,
)
from .corruptions import (
    parse_corruptions as parse_corruptions,
)
from .dataset import (
    Batch as Batch,
)
from .dataset import (
    Item as Item,
)
from .dataset import (
    Items as Items,
)
from .dataset import (
    eval_batches as eval_batches,
)
from .dataset import (
    rank_part as rank_part,
)
from .dataset import (
    some_batches as some_batches,
)
from .dataset import (
    steps_per_epoch as steps_per_epoch,
)
from .dataset import (
    train_batches as train_batches,
)
from .decode import (
    UnreadableImage as UnreadableImage,
)
from .decode import (
    decode_image as decode_image,
)
from .decode import (
    decode_row as decode_row,
)
from .decode import (
    fit_image as fit_image,
)
from .decode import (
    fit_mask as fit_mask,
)
from .decode import (
    open_image as open_image,
)
from .decode import (
    placement as placement,
)
from .decode import (
    rasterise as rasterise,
)
from .decode import (
    rows_of_block as rows_of_block,
)
from .refer import (
    load_refs as load_refs,
)
from .refer import (
    read_refer as read_refer,
)
from .refer_counts import (
    PUBLISHED as PUBLISHED,
)
from .refer_counts import (
    against_published as against_published,
)
from .refer_counts import (
    split_counts as split_counts,
)
from .refer_counts import (
    split_words as split_words,
)
from .refer_counts import (
    targets_of as targets_of,
)
from .refer_counts import (
    vocabulary as vocabulary,
)
from .rle import (
    referent as referent,
)
from .table import (
    read_table as read_table,
)
from .window import (
    READERS as READERS,
)
from .window import (
    WINDOW_BYTES as WINDOW_BYTES,
)
from .window import (
    Window as Window,
)
