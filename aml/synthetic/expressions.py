"""The language of the generated scenes: what can be said of an object, whether it is true, and how it is put into words.

A sentence is a `Query` (attributes, place, rank, relations) put into words.  It is kept when `judge` finds it true of
the referent and clearly false of every other object of the scene; `parse` reads the words back.
"""

import re

from aml.synthetic.meaning import BEST, COLOURS, Query, _fits, _place, _related, judge

NOUNS = {
    "circle": ("circle", "disc"),
    "ring": ("ring", "donut"),
    "heart": ("heart",),
    "square": ("square", "box"),
    "triangle": ("triangle",),
    "star": ("star",),
    "cross": ("cross", "plus"),
    "diamond": ("diamond",),
}

SIZES = {"small": ("small", "little", "tiny"), "big": ("big", "large")}

WEAVES = {
    "plain": ("plain", "solid"),
    "striped": ("striped",),
    "dotted": ("dotted", "spotted"),
    "checked": ("checked",),
}

PLACES = {
    "left": ("left",),
    "right": ("right",),
    "top": ("top", "upper"),
    "bottom": ("bottom", "lower"),
    "middle": ("middle", "center"),
}

FIRSTS = {
    "left": ("leftmost", "far left"),
    "right": ("rightmost", "far right"),
    "top": ("topmost", "highest"),
    "bottom": ("bottommost", "lowest"),
    "big": ("largest", "biggest"),
    "small": ("smallest", "tiniest"),
}

RANKS = {"second": 2, "third": 3}

LINKS = {
    "left": ("left of", "to the left of"),
    "right": ("right of", "to the right of"),
    "above": ("above", "over"),
    "below": ("below", "under"),
    "near": ("near", "next to"),
    "closest": ("closest to", "nearest to"),
}

ANY = ("one", "thing", "shape", "object")

FILLERS = frozenset(
    ("a", "an", "the", "that", "is", "which", "and", "on", "in", "at", "side", "corner", "with")
) | set(ANY)


def _lexicon():
    words = {}
    for slot, table in enumerate((NOUNS, {c: (c,) for c in COLOURS}, SIZES, WEAVES)):
        words |= {w: (slot, value) for value, forms in table.items() for w in forms}
    words |= {w: ("where", value) for value, forms in PLACES.items() for w in forms}
    words |= {
        w.replace(" ", "-"): ("best", (value, 1)) for value, forms in FIRSTS.items() for w in forms
    }
    words |= {
        f"<{w.replace(' ', '-')}>": ("link", value) for value, forms in LINKS.items() for w in forms
    }
    return words | {w: ("rank", value) for w, value in RANKS.items()}


LEXICON = _lexicon()

_LINK = re.compile(
    r"\b("
    + "|".join(sorted((w for f in LINKS.values() for w in f), key=len, reverse=True))
    + r")\b"
)


def parse(sentence):
    """Query of a cleaned sentence. Raises ValueError for a word or an order of words that is not in the grammar."""
    text = re.sub(r"[.,]", " ", sentence)
    text = re.sub(r"\bof the (picture|image)\b", " ", text)
    text = re.sub(r"\bfrom (?:the )?(left|right|top|bottom)\b", r"from-\1", text)
    text = re.sub(r"\bfar (left|right)\b", r"far-\1", text)
    text = _LINK.sub(lambda m: f"<{m[1].replace(' ', '-')}>", text)
    nps, links, where, best, rank, edge = [[None] * 4], [], [], None, None, None
    for word in text.split():
        if word in FILLERS:
            continue
        slot, value = (
            ("edge", word[5:]) if word.startswith("from-") else LEXICON.get(word, (None, word))
        )
        if slot == "link":
            links.append(value)
            nps.append([None] * 4)
        elif isinstance(slot, int) and nps[-1][slot] is None:
            nps[-1][slot] = value
        elif slot == "where" and not links:
            where.append(value)
        elif slot == "best" and not links and best is None:
            best = value
        elif slot == "rank" and not links and rank is None:
            rank = value
        elif slot == "edge" and rank and edge is None:
            edge = value
        else:
            raise ValueError(f"the word {word!r} has no place in {sentence!r}")
    if bool(rank) != bool(edge) or (rank and best) or any(not any(np_) for np_ in nps[1:]):
        raise ValueError(f"{sentence!r} is not a whole sentence")
    return Query(
        tuple(nps[0]),
        tuple(where),
        (edge, rank) if rank else best,
        tuple((k, tuple(n)) for k, n in zip(links, nps[1:], strict=True)),
    )


def _noun_phrase(rng, named, bare):
    """Words of (shape, colour, size, texture); without a shape a general noun, or none where `bare`."""
    shape, colour, size, texture = named
    words = [rng.choice(SIZES[size])] if size else []
    words += [rng.choice(WEAVES[texture])] if texture else []
    words += [colour] if colour else []
    if shape:
        words.append(NOUNS[shape][0] if rng.random() < 0.88 else NOUNS[shape][-1])
    elif not bare:
        words.append(rng.choice(ANY))
    return words


def _words(rng, query, long, corner=False):
    """Tokens that say `query`; `long` in RefCOCOg's manner; `corner` where two places may be called a corner."""
    only = not (query.where or query.best or query.relations)
    bare = (
        rng.random() < (0.5 if query.relations else 0.75)
        and not long
        and (any(query.named) or not only)
    )
    if query.relations and not any(query.named) and not query.where and not query.best:
        bare = False
    core, after = _noun_phrase(rng, query.named, bare), []
    if query.best:
        direction, rank = query.best
        if rank == 1:
            core = rng.choice(FIRSTS[direction]).split() + core
        else:
            core = [next(w for w, r in RANKS.items() if r == rank)] + core
            after += (
                ["from", "the", direction] if long or rng.random() < 0.4 else ["from", direction]
            )
    if query.where:
        place = [rng.choice(PLACES[p]) for p in query.where]
        style = rng.random()
        if not core or (style < 0.4 and not long):
            core = place + core
        else:
            the = ["the"] if long or rng.random() < 0.4 else []
            place = (
                [query.where[0]] if len(place) == 1 and place[0] in ("upper", "lower") else place
            )
            tail = ["corner"] if corner and len(place) == 2 and style > 0.7 else []
            tail = (
                ["side"]
                if place[0] in ("left", "right") and (style > 0.95 or (long and style > 0.6))
                else tail
            )
            tail += (
                ["of", "the", "picture" if style > 0.7 else "image"] if long and style > 0.4 else []
            )
            if place[0] in PLACES["middle"] or "corner" in tail:
                after += ["in"] + the + place + tail
            else:
                after += (["on"] if place[0] in ("left", "right") else ["at"]) + the + place + tail
    for number, (kind, named) in enumerate(query.relations):
        link = rng.choice(LINKS[kind] if not long else LINKS[kind][-1:]).split()
        lead = (
            (["that", "is"] if number == 0 else ["and"])
            if long and (number or rng.random() < 0.4)
            else []
        )
        if long and number == 0 and rng.random() < 0.12:
            lead = [",", "which", "is"]
        the = ["the"] if long or rng.random() < 0.45 else []
        after += lead + link + the + _noun_phrase(rng, named, False)
    tokens = core + after
    if long or (len(tokens) > 1 and rng.random() < 0.12):
        tokens = ["a" if long and not query.best and rng.random() < 0.4 else "the"] + tokens
    return tokens + ["."] if long and rng.random() < 0.15 else tokens


# kind of sentence -> weight; a second relation only in RefCOCOg
MIX = {
    "refcoco": {
        "one": 36,
        "named": 26,
        "where": 58,
        "best": 22,
        "rank": 8,
        "relation": 8,
        "full": 4,
    },
    "refcoco+": {"one": 24, "named": 50, "best": 26, "relation": 16, "full": 4},
    "refcocog": {"named": 18, "where": 24, "best": 14, "relation": 32, "full": 14},
}


def _some(rng, f, chances):
    return tuple(
        value if rng.random() < chance else None
        for value, chance in zip(f[:4], chances, strict=True)
    )


def _landmark(rng, facts, index):
    """(index, shortest unique name) of another object, or None."""
    other = rng.choice([i for i in range(len(facts)) if i != index])
    f = facts[other]
    for keep in ((0,), (2, 0), (1, 0), (3, 0), (1, 2, 0)):
        named = tuple(f[s] if s in keep else None for s in range(4))
        if sum(_fits(named, g) for g in facts) == 1:
            return other, named
    return None


def _propose(rng, facts, index, kind, plus):
    """A Query of that kind that may be true of facts[index], or None."""
    f = facts[index]
    if kind == "one":
        slot = rng.choice((0, 0, 1, 1, 3, "best"))
        if slot == "best":
            return Query(best=(rng.choice(("big", "small") if plus else tuple(BEST)), 1))
        return Query(tuple(f[s] if s == slot else None for s in range(4)))
    if kind == "named":
        named = _some(rng, f, (0.75, 0.45, 0.45, 0.4))
        return Query(named) if any(named) else None
    named = _some(rng, f, (0.72, 0.2, 0.12, 0.1) if kind != "full" else (1, 0.8, 0.6, 0.5))
    where = tuple(p for p in ("top", "bottom", "left", "right") if _place(p, f) == 1)
    where = ("middle",) if _place("middle", f) == 1 else where
    where = (
        where
        if rng.random() < 0.4 or kind == "full"
        else where[-1:]
        if rng.random() < 0.7
        else where[:1]
    )
    if kind == "where":
        return Query(named, where) if where else None
    if kind in ("best", "rank"):
        pool = sum(_fits(named, g) for g in facts)
        rank = 1 if kind == "best" else rng.choice((2, 2, 3))
        ways = (
            ("big", "small")
            if plus
            else ("left", "right", "top", "bottom") + ("big", "small") * 2 * (rank == 1)
        )
        return Query(named, best=(rng.choice(ways), rank)) if pool > rank else None
    relations = []
    for _ in range(1 + (kind == "full" and rng.random() < 0.4)):
        mark = _landmark(rng, facts, index)
        kinds = (
            ("near", "closest") if plus else ("left", "right", "above", "below", "near", "closest")
        )
        holds = [
            k for k in kinds if mark and (k == "closest" or _related(k, f, facts[mark[0]]) == 1)
        ]
        if holds:
            relations.append((rng.choice(holds[:-1] or holds), mark[1]))
    if not relations or len({k for k, _ in relations}) < len(relations):
        return None
    return Query(
        named,
        where if kind == "full" and not plus and rng.random() < 0.5 else (),
        None,
        tuple(relations),
    )


def sentences(rng, facts, index, dataset, wanted):
    """Up to `wanted` different token lists, each true of facts[index] alone."""
    plus, long = dataset == "refcoco+", dataset == "refcocog"
    kinds, weights = zip(*MIX[dataset].items(), strict=True)
    found = []
    for _ in range(14 * wanted):
        if len(found) == wanted:
            break
        kind = rng.choices(kinds, weights)[0]
        for _ in range(3):
            query = _propose(rng, facts, index, kind, plus)
            if query is None:
                continue
            values = judge(query, facts)
            if values[index] == 1 and sum(v > 0 for v in values) == 1:
                corner = abs(facts[index].x - 0.5) > 0.2 and abs(facts[index].y - 0.5) > 0.2
                tokens = _words(rng, query, long or (kind == "full" and rng.random() < 0.6), corner)
                if tokens not in found and len(tokens) <= (28 if long else 20):
                    found.append(tokens)
                break
    return found


def as_typed(rng, sent):
    """The sentence as somebody might have typed it."""
    raw = sent.replace("gray", "grey") if rng.random() < 0.5 else sent
    raw = raw.replace("second", "2nd") if rng.random() < 0.4 else raw
    case = rng.random()
    return raw.upper() if case < 0.04 else raw.capitalize() if case < 0.14 else raw
