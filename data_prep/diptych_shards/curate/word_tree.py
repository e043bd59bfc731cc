"""Machine code for `matching`: a table of words, and a tree of the words that follow one another in queries.

All of it is in one file: Numba's cache is renewed when the file of a function changes, not those of what it calls.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from diptych_shards.curate.compiled import compiled

_SPACE, _MARK = 1, 2
_KINDS = np.zeros(256, np.uint8)
_KINDS[list(b" \t\r\n")] = _SPACE
_KINDS[list(b",.;:?!`")] = _MARK

_FNV_START = np.uint64(0xCBF29CE484222325)
_FNV_PRIME = np.uint64(0x100000001B3)
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_NONE = np.uint64(0)
_EIGHT = np.uint64(8)
_THIRTY_TWO = np.uint64(32)
_INLINE_BYTES = 8
"""Words up to this length are their own key, so that equal keys are equal words."""

# What a slot says of a word or of a node of the tree, beside its number in the low 32 bits.
_LOW = np.uint64(0xFFFFFFFF)
_TAKEN = np.uint64(1 << 32)
_BEGINS = np.uint64(1 << 33)
"""A longer query goes on from here."""
_FOLLOWS = np.uint64(1 << 34)
"""The word is somewhere not a query's first."""
_SIZE_SHIFT = np.uint64(35)

BLOCK_WORDS = 512
"""Words that are looked up together, so that the memory answers many questions at once."""
_FEW = 24
"""So many matches of a caption are compared one by one; more are looked up."""


class WordTree(NamedTuple):
    """A node is a word, or what a word leads to from another node.

    A node's number is that of the query that ends there; other nodes, and other words, have numbers from
    `num_queries` on. The number of a word is that of its node.
    """

    words: np.ndarray
    """uint64[capacity, 2]: the key of a word, and what is to be said of it."""
    starts: np.ndarray
    """int64: where each word begins in `data`, by its number."""
    data: np.ndarray
    """uint8: the queries."""
    edges: np.ndarray
    """uint64[capacity, 2]: a node above 32 bits and the word that follows; what is to be said of the node after it."""
    num_queries: int
    longest: int
    """Words of the longest query."""


def build_tree(data: np.ndarray, offsets: np.ndarray) -> WordTree:
    """data, offsets: the queries' UTF-8, and where each begins and the last ends."""
    data = np.array(data)
    num_queries = len(offsets) - 1
    num_words = int(np.count_nonzero(data == ord(" "))) + num_queries
    words = np.zeros((_capacity(num_words), 2), np.uint64)
    starts = np.zeros(num_queries + num_words, np.int64)
    slots = np.zeros(num_words, np.int64)
    lengths = np.zeros(num_queries, np.int64)
    used = _add_words(data, offsets, words, starts, slots, lengths)
    edges = np.zeros((_capacity(int(np.sum(lengths - 1))), 2), np.uint64)
    _add_edges(words, slots, lengths, edges, used)
    return WordTree(words, starts[:used].copy(), data, edges, num_queries, int(lengths.max(initial=1)))


def _capacity(items: int) -> int:
    """A power of two that leaves a third of the slots free."""
    return 1 << max(4, int(items * 3 // 2).bit_length())


@compiled
def _shift(slots):
    """How far a hash is shifted to become a slot."""
    shift = np.uint64(64)
    capacity = slots.shape[0]
    while capacity > 1:
        capacity >>= 1
        shift -= np.uint64(1)
    return shift


@compiled
def _look_up(words, slot, starts, data, text, start, size, key):
    """The slot of the word text[start : start + size], or the free slot where it would be; from a slot on."""
    mask = words.shape[0] - 1
    while True:
        found = words[slot, 1]
        if found == _NONE:
            return slot
        if words[slot, 0] == key and np.int64(found >> _SIZE_SHIFT) == size:
            if size <= _INLINE_BYTES:
                return slot
            known = starts[np.int64(found & _LOW)]
            place = 0
            while place < size and data[known + place] == text[start + place]:
                place += 1
            if place == size:
                return slot
        slot = (slot + 1) & mask


@compiled
def _look_up_edge(edges, shift, key):
    """The slot of the edge, or the free slot where it would be."""
    mask = edges.shape[0] - 1
    slot = np.int64(((key ^ (key >> np.uint64(29))) * _GOLDEN) >> shift)
    while edges[slot, 1] != _NONE and edges[slot, 0] != key:
        slot = (slot + 1) & mask
    return slot


@compiled
def _add_words(data, offsets, words, starts, slots, lengths):
    """Fill the table of words; slots gets the slot of each word of each query. The first number not used."""
    shift = _shift(words)
    num_queries = len(offsets) - 1
    used = num_queries
    filled = 0
    # Words that are queries come first, so that each gets the query's number.
    for wanted in range(2):
        filled = 0
        for query in range(num_queries):
            position = offsets[query]
            stop = offsets[query + 1]
            first = filled
            while True:
                start = position
                packed = _NONE
                mixed = _FNV_START
                while position < stop and data[position] != 32:
                    packed = (packed << _EIGHT) | np.uint64(data[position])
                    mixed = (mixed ^ np.uint64(data[position])) * _FNV_PRIME
                    position += 1
                size = position - start
                is_whole = start == offsets[query] and position == stop
                if is_whole or wanted == 1:
                    key = packed if size <= _INLINE_BYTES else mixed
                    slot = np.int64((key * _GOLDEN) >> shift)
                    slot = _look_up(words, slot, starts, data, data, start, size, key)
                    if words[slot, 1] == _NONE:
                        number = query if is_whole else used
                        used += 0 if is_whole else 1
                        starts[number] = start
                        words[slot, 0] = key
                        words[slot, 1] = (np.uint64(size) << _SIZE_SHIFT) | _TAKEN | np.uint64(number)
                    slots[filled] = slot
                filled += 1
                if position == stop:
                    break
                position += 1
            lengths[query] = filled - first
    return used


@compiled
def _add_edges(words, slots, lengths, edges, used):
    """Fill the table of edges; numbers from `used` on are free.

    An inner node is numbered when it is met first; if a query ends there, a second round gives it the query's number.
    """
    shift = _shift(edges)
    renamed = np.full(used + len(slots), -1, np.int64)
    for is_final in range(2):
        edges[:] = 0
        number = used
        first = 0
        for query in range(len(lengths)):
            node = words[slots[first], 1] & _LOW
            if lengths[query] > 1:
                words[slots[first], 1] |= _BEGINS
            for place in range(first + 1, first + lengths[query]):
                words[slots[place], 1] |= _FOLLOWS
                key = (node << _THIRTY_TWO) | (words[slots[place], 1] & _LOW)
                slot = _look_up_edge(edges, shift, key)
                if edges[slot, 1] == _NONE:
                    name = renamed[number] if is_final and renamed[number] >= 0 else number
                    edges[slot, 0] = key
                    edges[slot, 1] = _TAKEN | np.uint64(name)
                    number += 1
                node = edges[slot, 1] & _LOW
                if place + 1 < first + lengths[query]:
                    edges[slot, 1] |= _BEGINS
                elif not is_final:
                    renamed[np.int64(node)] = query
            first += lengths[query]


@compiled
def _split(text, offsets, caption, position, keys, begins, sizes, lasts):
    """Fill a block with the words from a position of a caption on, also of the captions after it.

    lasts: whether it is the caption's last word. Returns how many there are, and where the next block begins.
    """
    filled = 0
    num_captions = len(offsets) - 1
    while caption < num_captions and filled + 2 <= BLOCK_WORDS:
        stop = offsets[caption + 1]
        while filled + 2 <= BLOCK_WORDS:
            start = position
            packed = _NONE
            mixed = _FNV_START
            kind = 0
            while position < stop:
                kind = _KINDS[text[position]]
                if kind != 0:
                    break
                byte = np.uint64(text[position])
                packed = (packed << _EIGHT) | byte
                mixed = (mixed ^ byte) * _FNV_PRIME
                position += 1
            size = position - start
            keys[filled] = packed if size <= _INLINE_BYTES else mixed
            begins[filled] = start
            sizes[filled] = size
            lasts[filled] = position == stop
            filled += 1
            if position == stop:
                caption += 1
                break
            if kind == _MARK:
                keys[filled] = np.uint64(text[position])
                begins[filled] = position
                sizes[filled] = 1
                lasts[filled] = False
                filled += 1
            position += 1
    return filled, caption, position


@compiled
def _is_new(query, ids, first, filled, last_seen, stamp):
    """Whether the query is not among ids[first:filled]."""
    if filled - first < _FEW:
        for place in range(first, filled):
            if ids[place] == query:
                return False
        return True
    if filled - first == _FEW:
        for place in range(first, filled):
            last_seen[ids[place]] = stamp
    if last_seen[query] == stamp:
        return False
    last_seen[query] = stamp
    return True


@compiled
def match_captions(text, offsets, tree, last_seen, stamp, ids, ends, done):
    """Match captions from number `done` on; the number of the one for whose matches `ids` had no room, or of all.

    ends[i + 1] is set to where the matches of caption i end in `ids`; stamp + i marks in `last_seen` what was found.
    """
    word_shift = _shift(tree.words)
    edge_shift = _shift(tree.edges)
    keys = np.zeros(BLOCK_WORDS, np.uint64)
    begins = np.zeros(BLOCK_WORDS, np.int64)
    sizes = np.zeros(BLOCK_WORDS, np.int64)
    lasts = np.zeros(BLOCK_WORDS, np.bool_)
    slots = np.zeros(BLOCK_WORDS, np.int64)
    found = np.zeros(BLOCK_WORDS, np.uint64)
    alive = np.zeros(tree.longest + 1, np.uint64)
    num_alive = 0
    num_captions = len(offsets) - 1
    num_queries = np.uint64(tree.num_queries)
    reading = done
    position = offsets[done]
    first = filled = ends[done]
    while done < num_captions:
        num_words, reading, position = _split(text, offsets, reading, position, keys, begins, sizes, lasts)
        if filled + num_words * tree.longest > len(ids):
            return done
        for place in range(num_words):
            slot = np.int64((keys[place] * _GOLDEN) >> word_shift)
            slots[place] = slot
            found[place] = tree.words[slot, 1]
        for place in range(num_words):
            if found[place] != _NONE:
                slot = _look_up(
                    tree.words, slots[place], tree.starts, tree.data, text, begins[place], sizes[place], keys[place]
                )
                found[place] = tree.words[slot, 1]
        for place in range(num_words):
            word = found[place]
            still = 0
            if num_alive and word & _FOLLOWS:
                for other in range(num_alive):
                    slot = _look_up_edge(tree.edges, edge_shift, (alive[other] << _THIRTY_TWO) | (word & _LOW))
                    node = tree.edges[slot, 1]
                    if node == _NONE:
                        continue
                    query = node & _LOW
                    if query < num_queries and _is_new(query, ids, first, filled, last_seen, stamp + done):
                        ids[filled] = query
                        filled += 1
                    if node & _BEGINS:
                        alive[still] = query
                        still += 1
            if word != _NONE:
                query = word & _LOW
                if query < num_queries and _is_new(query, ids, first, filled, last_seen, stamp + done):
                    ids[filled] = query
                    filled += 1
                if word & _BEGINS:
                    alive[still] = query
                    still += 1
            num_alive = still
            if lasts[place]:
                num_alive = 0
                done += 1
                ends[done] = filled
                first = filled
    return done
