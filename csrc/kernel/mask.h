/* Masks as words of bits: bit i of words[j] is set if query lane i sees key j. Whatever hides a key, one blend per
 * vector then sets its score to -inf.
 *
 * Positions and lengths give each lane an interval of keys: its bit is toggled at both ends, and a running xor along
 * the keys fills the words. Masks, block masks and global tokens are read row by row, 64 keys at a time, and each
 * square of 64 x 64 bits is transposed. */
#ifndef AF_MASK_H
#define AF_MASK_H

#include "kernel/block.h"

AF_INLINE uint64_t low_bits(int64_t n) { return n <= 0 ? 0 : n >= 64 ? ~(uint64_t)0 : ((uint64_t)1 << n) - 1; }

/* Keys of [j0, j0 + n) that a row sees as far as the dense mask decides, n <= 64. */
static uint64_t dense_word(const af_tensor *mask, const uint8_t *row, int64_t j0, int n)
{
    if (mask->j == 0) return *row ? low_bits(n) : 0;
    return nonzero_bytes(row + j0, n);
}

/* Keys of [j0, j0 + n) that a row sees as far as the block mask decides. */
static uint64_t block_word(const af_call *call, const af_visibility *vis, int r, int64_t j0, int n)
{
    const uint8_t *row = (const uint8_t *)call->visible.blocks.data;
    row += af_offset(&call->visible.blocks, vis->b, vis->head[r], af_block_of_query(call, vis->b, vis->query[r]));
    uint64_t word = 0;
    int64_t column = af_block_of_key(call, vis->b, j0);
    for (int64_t j = j0, end; j < j0 + n; j = end, column++) {
        end = af_min(j0 + n, af_block_end(call, vis->b, column));
        if (row[column * call->visible.blocks.j]) word |= low_bits(end - j0) & ~low_bits(j - j0);
    }
    return word;
}

/* Keys of [j0, j0 + n) that a row sees as far as global tokens decide, without those of its excluded window. */
static uint64_t global_word(const af_call *call, const af_visibility *vis, int r, int64_t j0, int n)
{
    const int64_t position = af_position(call, vis->b, vis->query[r]), step = call->visible.dilation[vis->head[r]];
    uint64_t word = vis->global_rows >> r & 1 ? low_bits(n) : nonzero_bytes(vis->global + j0, n);
    const int64_t ahead = j0 - position;
    /* The first t whose key is j0 or after it. */
    const int64_t first = ahead > 0 ? (ahead + step - 1) / step : -(-ahead / step);
    for (int64_t t = af_max(first, -call->subset.excluded_left);
         t <= call->subset.excluded_right && position + t * step < j0 + n; t++)
        word &= ~((uint64_t)1 << (position + t * step - j0));
    return word;
}

/* Gathered keys of [j0, j0 + n) outside the excluded window of a row. */
static uint64_t position_word(const af_call *call, const af_visibility *vis, int r, int64_t j0, int n)
{
    const int64_t position = af_position(call, vis->b, vis->query[r]), step = call->visible.dilation[vis->head[r]];
    uint64_t word = low_bits(n);
    for (int j = 0; j < n; j++) {
        const int64_t ahead = call->subset.key_position[j0 + j] - position, t = ahead / step;
        if (t * step == ahead && t >= -call->subset.excluded_left && t <= call->subset.excluded_right)
            word &= ~((uint64_t)1 << j);
    }
    return word;
}

/* Keys of [j0, j0 + n) that a row sees as far as masks, block masks, global tokens and excluded windows decide, n
 * <= 64. */
static uint64_t row_word(const af_call *call, const query_block *block, int r, int64_t j0, int n)
{
    uint64_t word = low_bits(n);
    if (call->visible.mask.data) word = dense_word(&call->visible.mask, block->mask_row[r], j0, n);
    if (call->visible.blocks.data && word) word &= block_word(call, &block->vis, r, j0, n);
    if (call->subset.global && word) word &= global_word(call, &block->vis, r, j0, n);
    if (call->subset.key_position && word) word &= position_word(call, &block->vis, r, j0, n);
    return word;
}

/* Whether two rows are known to have the same word; false if only reading both would tell. */
static bool same_words(const af_call *call, const query_block *block, int r, int s)
{
    const af_visibility *vis = &block->vis;
    if (call->subset.global || call->subset.key_position ||
        (call->visible.mask.data && block->mask_row[r] != block->mask_row[s]))
        return false;
    return !call->visible.blocks.data ||
           (af_block_of_query(call, vis->b, vis->query[r]) == af_block_of_query(call, vis->b, vis->query[s]) &&
            (vis->head[r] == vis->head[s] || !call->visible.blocks.h));
}

/* Swaps the upper right and lower left d x d bits of each square of 2 d x 2 d. With a constant d the compiler uses
 * vectors. */
AF_INLINE void swap_corners(const int d, const uint64_t low, uint64_t w[64])
{
    for (int base = 0; base < 64; base += 2 * d)
        for (int i = base; i < base + d; i++) {
            const uint64_t t = ((w[i] >> d) ^ w[i + d]) & low;
            w[i] ^= t << d;
            w[i + d] ^= t;
        }
}

static void transpose_bits(uint64_t w[64])
{
    swap_corners(32, 0x00000000ffffffff, w);
    swap_corners(16, 0x0000ffff0000ffff, w);
    swap_corners(8, 0x00ff00ff00ff00ff, w);
    swap_corners(4, 0x0f0f0f0f0f0f0f0f, w);
    swap_corners(2, 0x3333333333333333, w);
    swap_corners(1, 0x5555555555555555, w);
}

enum { SEES_NOTHING, SEES_SOME, SEES_ALL };

/* words[0 .. n] of positions and lengths, for the lanes in use. */
static void words_of_positions(const query_block *block, int64_t j0, int n, uint64_t *words)
{
    const af_interval *visible = block->vis.visible;
    for (int j = 0; j <= n; j++) words[j] = 0;
    for (int lane = block->v0 * VL; lane < block->n && lane < block->v1 * VL; lane++) {
        const uint64_t bit = (uint64_t)1 << lane;
        words[af_min(af_max(visible[lane].begin - j0, 0), n)] ^= bit;
        words[af_min(af_max(visible[lane].end - j0, 0), n)] ^= bit;
    }
    for (int j = 1; j < n; j++) words[j] ^= words[j - 1];
}

/* Clears the bits of pairs that a mask, block mask, global tokens or an excluded window hide. */
static void words_of_rows(const af_call *call, const query_block *block, int64_t j0, int n, uint64_t *words)
{
    for (int j = 0; j < n; j += 64) {
        const int here = n - j < 64 ? n - j : 64;
        uint64_t square[64] = {0};
        if (af_has_pattern(call)) {
            for (int lane = 0; lane < block->n; lane++)
                square[lane] = lane && same_words(call, block, lane, lane - 1)
                                   ? square[lane - 1]
                                   : row_word(call, block, lane, j0 + j, here);
        } else {
            for (int lane = 0; lane < block->n; lane++)
                square[lane] = lane && block->mask_row[lane] == block->mask_row[lane - 1]
                                   ? square[lane - 1]
                                   : dense_word(&call->visible.mask, block->mask_row[lane], j0 + j, here);
        }
        transpose_bits(square);
        for (int i = 0; i < here; i++) words[j + i] &= square[i];
    }
}

/* How much of n keys is visible under a mask that all rows share. */
static int keys_of_mask(const uint8_t *mask, int n)
{
    bool any = false, all = true;
    for (int j = 0; j < n; j += 64) {
        const int here = n - j < 64 ? n - j : 64;
        const uint64_t word = nonzero_bytes(mask + j, here);
        any = any || word;
        all = all && word == low_bits(here);
    }
    return !any ? SEES_NOTHING : all ? SEES_ALL : SEES_SOME;
}

/* Clears the words of keys that such a mask hides. */
static void words_of_key_mask(const uint8_t *mask, int n, uint64_t *words)
{
    for (int j = 0; j < n; j++)
        if (!mask[j]) words[j] = 0;
}

static uint64_t used_lanes(const query_block *block)
{
    return low_bits(af_min(block->n, block->v1 * VL)) & ~low_bits(block->v0 * VL);
}

/* How much of n keys is visible under a block mask, to the vectors in use. */
static int keys_of_blocks(const af_call *call, const query_block *block, int64_t j0, int n)
{
    bool any = false, all = true;
    const int64_t first = af_block_of_key(call, block->vis.b, j0),
                  last = af_block_of_key(call, block->vis.b, j0 + n - 1);
    for (int64_t column = first; column <= last; column++)
        for (int r = 0; r < block->vis.block_rows; r++) {
            const bool seen = block->vis.block_row[r].row[column * call->visible.blocks.j];
            if (!(block->vis.block_row[r].vectors >> block->v0 & low_bits(block->v1 - block->v0))) continue;
            any = any || seen;
            all = all && seen;
        }
    return !any ? SEES_NOTHING : all ? SEES_ALL : SEES_SOME;
}

/* How much of n keys may be visible, as far as it is known without making words: SEES_SOME where they are needed. */
static int glance(const af_call *call, const query_block *block, int64_t j0, int n)
{
    if (call->subset.global) return SEES_SOME;
    if (call->subset.key_position && call->subset.key_position[j0] < block->vis.excluded.end &&
        call->subset.key_position[j0 + n - 1] >= block->vis.excluded.begin)
        return SEES_SOME;
    const int blocks = call->visible.blocks.data ? keys_of_blocks(call, block, j0, n) : SEES_ALL;
    if (!call->visible.mask.data || blocks == SEES_NOTHING) return blocks;
    const int keys = block->vis.mask ? keys_of_mask(block->vis.mask + j0, n) : SEES_SOME;
    return keys == SEES_ALL ? blocks : keys;
}

/* Returns how much of the keys [j0, j0 + n) is visible. If it returns SEES_SOME, words are filled. */
static int visible_words(const af_call *call, const query_block *block, int64_t j0, int n, uint64_t *words)
{
    const bool inside = j0 >= block->vis.inner.begin && j0 + n <= block->vis.inner.end;
    const int left = glance(call, block, j0, n);
    if (left == SEES_NOTHING || (inside && left == SEES_ALL)) return left;
    words_of_positions(block, j0, n, words);
    if (block->vis.mask) words_of_key_mask(block->vis.mask + j0, n, words);
    if (left == SEES_SOME && ((call->visible.mask.data && !block->vis.mask) || af_has_pattern(call)))
        words_of_rows(call, block, j0, n, words);
    const uint64_t lanes = used_lanes(block);
    uint64_t any = 0, all = lanes;
    for (int j = 0; j < n; j++) {
        any |= words[j];
        all &= words[j];
    }
    return (any & lanes) == 0 ? SEES_NOTHING : all == lanes ? SEES_ALL : SEES_SOME;
}

static void hide_scores(const query_block *block, int n, const uint64_t *words, real *s)
{
    const v hidden = v_set1(-AF_INFINITY);
    const uint64_t lanes = used_lanes(block);
    for (int j = 0; j < n; j++, s += AF_NR) {
        if ((words[j] & lanes) == lanes) continue;
        for (int c = block->v0; c < block->v1; c++)
            v_store(s + c * VL, v_select(vm_bits(words[j] >> c * VL), v_load(s + c * VL), hidden));
    }
}

/* words[j]: the lanes whose score is not -inf, after masks and biases. */
static void words_of_scores(const query_block *block, int n, const real *s, uint64_t *words)
{
    for (int j = 0; j < n; j++, s += AF_NR) {
        words[j] = 0;
        for (int c = block->v0; c < block->v1; c++)
            words[j] |= vm_word(vm_ne(v_load(s + c * VL), v_set1(-AF_INFINITY))) << c * VL;
    }
}

#endif
