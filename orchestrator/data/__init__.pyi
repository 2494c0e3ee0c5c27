from .block_choice import (
    pin_blocks as pin_blocks,
)
from .convert import (
    check_output as check_output,
    pack_rows as pack_rows,
    write_shards as write_shards,
)
from .decoded import (
    ObjectStoreBlocks as ObjectStoreBlocks,
    ShardSelection as ShardSelection,
    decode_shards as decode_shards,
)
from .findings import (
    found_lines as found_lines,
    left_out as left_out,
    scored_sentences as scored_sentences,
)
from .forensics.audit import (
    MOST_BITS as MOST_BITS,
    audit_lines as audit_lines,
    audit_shards as audit_shards,
)
from .forensics.diff import (
    diff_lines as diff_lines,
    diff_shards as diff_shards,
)
from .forensics.effect import (
    effect_lines as effect_lines,
    score_effect as score_effect,
)
from .mixture import (
    LastDecoded as LastDecoded,
    Sources as Sources,
    check_sources as check_sources,
    is_evaluation as is_evaluation,
    prepare_sources as prepare_sources,
)
from .named_shards import (
    named_shards as named_shards,
)
from .shards import (
    COMPLETE_MARKER as COMPLETE_MARKER,
    describe_counts as describe_counts,
    picture_places as picture_places,
    read_manifest as read_manifest,
    read_rows as read_rows,
    verify_shards as verify_shards,
)
from .streaming import (
    RowGroupReader as RowGroupReader,
    StreamingBlocks as StreamingBlocks,
)
