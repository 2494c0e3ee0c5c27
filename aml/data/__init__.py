"""Read referring data: REFER files, tables, pictures, masks, and the items a loop trains on.

May import: aml.errors, aml.metrics, aml.draws, aml.files, aml.reading, aml.conditions.
Public names: Annotations, Batch, Findings, Item, Items, POSITION_WORDS, PUBLISHED, READERS,
    WINDOW_BYTES, Window, against_published, check_sentence, corrupt, decode_image, decode_row,
    eval_batches, fit_image, fit_mask, load_grefs, load_instances, load_refs, mirrored, peek_table,
    picture_kind, placement, rank_part, rasterise, read_predicted_mask, read_refer, read_table,
    referent, row_picture, rows_of_block, some_batches, split_counts, split_words, steps_per_epoch,
    targets_of, train_batches, vocabulary.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
