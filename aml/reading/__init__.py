"""Open files that strangers may have written: size, kind, nesting and values are bounded.

May import: aml.errors.
Public names: ID, MAX_BYTES, MAX_PIXELS, MOST_PIXELS, SUFFIXES, UnreadableImage, check_pixels,
    decode_as, describe, elements, file_problem, is_id, json_lines, open_picture, orientation,
    parse_json, pixels_of, problem_of, read_bytes, read_json, read_lines, read_pickle, read_picture,
    read_text, split_problem, text_problem.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
