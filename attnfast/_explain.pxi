# The heaviest keys of queries, and the weight that keys receive. Included by _core.pyx.

def attention_topk(
    query, key, k, mask, bias, is_causal, window_size, q_offset, q_lengths, kv_lengths, scale, softcap, alibi_slopes,
    sink_logits, num_threads, return_blocks=None,
):
    """Keys and weights."""
    cdef Call call = Call.__new__(Call)
    cdef cnp.ndarray index, weight
    cdef int threads
    call.set_operands(query, key, None, False)
    heaviest = whole_number(k, "k")
    if not 0 <= heaviest <= call.p.Lk:
        raise ValueError(f"k must be within 0 .. {call.p.Lk}, the number of keys, got {heaviest}")
    if call.p.dtype != AF_F64 and call.p.Lk >= 1 << 32:
        raise ValueError(f"key must have fewer than 2**32 keys here, got {call.p.Lk}")
    call.set_options(mask, bias, is_causal, window_size, q_offset, q_lengths, kv_lengths, scale, softcap,
                     alibi_slopes, sink_logits)
    threads = thread_count(num_threads)
    if return_blocks is not None:
        call.results.topk = heaviest
        call.results.top_index.data = call.results.top_weight.data = WANTED
        return call.describe(threads, return_blocks)
    weight = call.new_array(heaviest)
    index = np.empty(shape_of(weight), np.int64)
    call.set_strides(&call.results.top_index, index)
    call.set_strides(&call.results.top_weight, weight)
    if heaviest:
        call.results.topk = heaviest
        call.run(threads)
    return index, weight


def key_importance(
    query, key, per_kv_head, mask, bias, is_causal, window_size, q_offset, q_lengths, kv_lengths, scale, softcap,
    alibi_slopes, sink_logits, num_threads, return_blocks=None,
):
    cdef Call call = Call.__new__(Call)
    cdef cnp.ndarray total
    cdef int threads
    call.set_operands(query, key, None, False)
    grouped = flag(per_kv_head, "per_kv_head")
    call.set_options(mask, bias, is_causal, window_size, q_offset, q_lengths, kv_lengths, scale, softcap,
                     alibi_slopes, sink_logits)
    threads = thread_count(num_threads)
    if return_blocks is not None:
        call.results.importance = WANTED
        return call.describe(threads, return_blocks)
    batch, H, Hk, Lk = call.batch_shape(), call.p.H, call.p.Hk, call.p.Lk
    total = np.zeros(batch + (H, Lk), np.float64 if call.p.dtype == AF_F64 else np.float32)
    call.results.importance = cnp.PyArray_DATA(total)
    call.run(threads)
    if grouped:
        total = total.reshape(batch + (Hk, H // max(Hk, 1), Lk)).sum(axis=-2)
    return total[0] if call.ndim == 2 else total
