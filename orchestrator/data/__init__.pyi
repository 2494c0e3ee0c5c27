from .convert import (
    pack_rows as pack_rows,
)
from .convert import (
    write_shards as write_shards,
)
from .decoded import (
    ObjectStoreBlocks as ObjectStoreBlocks,
)
from .decoded import (
    RowGroupReader as RowGroupReader,
)
from .decoded import (
    ShardSelection as ShardSelection,
)
from .decoded import (
    StreamingBlocks as StreamingBlocks,
)
from .decoded import (
    decode_shards as decode_shards,
)
from .decoded import (
    pin_blocks as pin_blocks,
)
from .mixture import (
    Sources as Sources,
)
from .mixture import (
    check_sources as check_sources,
)
from .mixture import (
    prepare_sources as prepare_sources,
)
from .shards import (
    COMPLETE_MARKER as COMPLETE_MARKER,
)
from .shards import (
    describe_counts as describe_counts,
)
from .shards import (
    picture_places as picture_places,
)
from .shards import (
    read_manifest as read_manifest,
)
from .shards import (
    read_rows as read_rows,
)
from .shards import (
    verify_shards as verify_shards,
)
