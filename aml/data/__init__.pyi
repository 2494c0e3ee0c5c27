from .annotations import (
    Annotations as Annotations,
)
from .augment import (
    mirrored as mirrored,
)
from .batches import (
    eval_batches as eval_batches,
    rank_part as rank_part,
    some_batches as some_batches,
    steps_per_epoch as steps_per_epoch,
    train_batches as train_batches,
)
from .corruptions import (
    corrupt as corrupt,
)
from .dataset import (
    Batch as Batch,
    Item as Item,
    Items as Items,
)
from .decode import (
    decode_image as decode_image,
    decode_row as decode_row,
    fit_image as fit_image,
    fit_mask as fit_mask,
    picture_kind as picture_kind,
    placement as placement,
    row_picture as row_picture,
    rows_of_block as rows_of_block,
)
from .instances import (
    load_instances as load_instances,
)
from .refer import (
    read_refer as read_refer,
)
from .refer_counts import (
    POSITION_WORDS as POSITION_WORDS,
    PUBLISHED as PUBLISHED,
    against_published as against_published,
    check_sentence as check_sentence,
    split_counts as split_counts,
    split_words as split_words,
    targets_of as targets_of,
    vocabulary as vocabulary,
)
from .refer_files.findings import (
    Findings as Findings,
)
from .refer_files.refs import (
    load_grefs as load_grefs,
    load_refs as load_refs,
)
from .rle import (
    rasterise as rasterise,
    read_predicted_mask as read_predicted_mask,
    referent as referent,
)
from .table import (
    peek_table as peek_table,
    read_table as read_table,
)
from .window import (
    READERS as READERS,
    WINDOW_BYTES as WINDOW_BYTES,
    Window as Window,
)
