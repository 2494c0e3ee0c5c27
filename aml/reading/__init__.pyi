from .files import (
    MAX_BYTES as MAX_BYTES,
    read_bytes as read_bytes,
    read_text as read_text,
)
from .json_stream import (
    elements as elements,
    json_lines as json_lines,
)
from .json_text import (
    parse_json as parse_json,
    read_json as read_json,
)
from .pickles import (
    read_pickle as read_pickle,
)
from .pictures import (
    MAX_PIXELS as MAX_PIXELS,
    MOST_PIXELS as MOST_PIXELS,
    SUFFIXES as SUFFIXES,
    UnreadableImage as UnreadableImage,
    check_pixels as check_pixels,
    decode_as as decode_as,
    open_picture as open_picture,
    orientation as orientation,
    pixels_of as pixels_of,
    read_picture as read_picture,
)
from .records import (
    problem_of as problem_of,
    read_lines as read_lines,
)
from .short_repr import (
    describe as describe,
)
from .values import (
    ID as ID,
    file_problem as file_problem,
    is_id as is_id,
    split_problem as split_problem,
    text_problem as text_problem,
)
