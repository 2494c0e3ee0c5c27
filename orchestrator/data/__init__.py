"""Write Parquet shards of a data set, verify them, decode them with Ray Data, mix data sets.

May import: orchestrator.cluster and what it may import.
Public names: COMPLETE_MARKER, LastDecoded, ObjectStoreBlocks, RowGroupReader, ShardSelection,
    Sources, StreamingBlocks, check_output, check_sources, decode_shards, describe_counts,
    found_lines, is_evaluation, left_out, named_shards, pack_rows, picture_places, pin_blocks,
    prepare_sources, read_manifest, read_rows, scored_sentences, verify_shards, write_shards.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
