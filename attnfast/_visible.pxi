# Who sees whom: masks, windows, positions, lengths. Included by _core.pyx.

cdef tuple window_sides(object window_size):
    if isinstance(window_size, (tuple, list)):
        if len(window_size) != 2:
            raise ValueError(f"window_size must be an int or a pair (left, right), got {window_size!r}")
        return tuple(window_size)
    if isinstance(window_size, np.ndarray):
        raise wrong_window(window_size)
    return window_size, window_size


cdef int64_t window_bound(object x) except? -2:
    if x is None:
        return AF_FAR
    number = whole_number(x, "window_size")
    cdef int64_t n = position(number)
    if n < -1:
        raise ValueError(f"window_size bounds must be -1 (unbounded) or more, got {number}")
    return AF_FAR if n == -1 or n >= AF_MAX_POSITION else n


cdef bint rises(cnp.ndarray a, int64_t total):
    """Whether int64 begin with 0, end with `total`, and none is below the one before."""
    cdef int64_t *n = first_number(a)
    cdef cnp.npy_intp k, last = cnp.PyArray_SIZE(a) - 1
    for k in range(last):
        if n[k + 1] < n[k]:
            return False
    return n[0] == 0 and n[last] == total


cdef cnp.ndarray steps_of(cnp.ndarray a):
    """How much each of int64 is above the one before."""
    cdef cnp.ndarray steps = repeated(0, cnp.PyArray_SIZE(a) - 1)
    cdef int64_t *n = first_number(a)
    cdef cnp.npy_intp k
    for k in range(cnp.PyArray_SIZE(steps)):
        first_number(steps)[k] = n[k + 1] - n[k]
    return steps


@cython.no_gc
cdef class Visible(Stored):
    """The options that decide who sees whom. None is the same as an option that is left out."""

    cdef bint positioned  # is something relative to the query's position on the key axis?
    cdef int64_t rows  # how many entries an option has with one for each batch row, or packed sequence
    cdef cnp.ndarray q_lengths, kv_lengths  # one for each of these, or None: all of them

    # ---- pairs ----

    cdef bint broadcasts(self, cnp.ndarray a, int64_t rows, int64_t columns):
        """Whether an array goes over (..., H, rows, columns), and can only be meant for these axes."""
        cdef int k, nd = cnp.PyArray_NDIM(a)
        cdef int64_t wanted, n
        if nd > self.batch_ndim + 3:
            return False
        for k in range(1, nd + 1):
            n = axis(a, k)
            if k > 3:
                wanted = self.batch[self.batch_ndim + 3 - k]
            else:
                wanted = columns if k == 1 else rows if k == 2 else self.p.H
            if n != 1 and n != wanted:
                return False
        if self.p.B == 1 or nd <= self.batch_ndim or nd == self.batch_ndim + 3:
            return True
        return cnp.PyArray_DIMS(a)[0] != self.batch[0]  # an array for each batch row has the batch axes

    cdef int set_pairs(self, af_tensor *t, cnp.ndarray a) except -1:
        """A tensor of an array over (..., H, rows, columns), any axis of length 1 broadcast."""
        a = without_repeats(a, 0)
        if not has_legal_strides(a):
            a = np.array(a, dtype=a.dtype.newbyteorder("="), order="C", copy=True)
        self.kept(a)
        return self.set_strides(t, a)

    cdef int check_pairs(self, cnp.ndarray a, str name, int64_t rows, int64_t columns, bint blocks) except -1:
        if not self.broadcasts(a, rows, columns):
            check_axes(name, shape_of(a), self.batch_shape(), (self.p.H, rows, columns), blocks=blocks)
        return 0

    cdef int set_blocks(self, object mask) except -1:
        cdef int64_t rows, columns
        self.visible.block_q = min(mask.block_size[0], max(self.p.Lq, 1))
        self.visible.block_k = min(mask.block_size[1], max(self.p.Lk, 1))
        rows = (self.p.Lq + self.visible.block_q - 1) // self.visible.block_q
        columns = (self.p.Lk + self.visible.block_k - 1) // self.visible.block_k
        if mask.blocks.shape[-2:] != (rows, columns):
            raise ValueError(
                f"mask must have {(rows, columns)} blocks of {mask.block_size} queries and keys for "
                f"Lq = {self.p.Lq} and Lk = {self.p.Lk}, got {mask.blocks.shape[-2:]}"
            )
        self.check_pairs(mask.blocks, "mask", rows, columns, True)
        return self.set_pairs(&self.visible.blocks, mask.blocks)

    cdef int set_mask(self, object mask) except -1:
        cdef bint blocks
        cdef cnp.ndarray a
        if mask is None:
            return 0
        blocks = isinstance(mask, BlockMask)
        if blocks and mask.block_size != (1, 1):
            return self.set_blocks(mask)
        a = mask.blocks if blocks else array_of(mask, "mask")  # one pair a block: an elementwise mask
        if cnp.PyArray_TYPE(a) != cnp.NPY_BOOL:
            raise wrong_mask(a, mask, "mask")
        self.check_pairs(a, "mask", self.p.Lq, self.p.Lk, blocks)
        return self.set_pairs(&self.visible.mask, a)

    # ---- windows ----

    cdef int set_window(self, object is_causal, object window_size) except -1:
        self.visible.causal = self.positioned = flag(is_causal, "is_causal")
        self.visible.left = self.visible.right = AF_FAR
        if window_size is not None:
            left, right = window_sides(window_size)
            self.visible.left = window_bound(left)
            self.visible.right = window_bound(right)
            self.positioned = self.positioned or self.visible.left < AF_FAR or self.visible.right < AF_FAR
        return 0

    cdef int set_places(self, object centers, object sigma, object global_tokens, object dilation) except -1:
        """What windows of local_attention are made of, beside their sides."""
        if centers is None and sigma is not None:
            raise ValueError(f"sigma must be None without centers, got {sigma!r}: leave sigma out")
        if centers is None:
            self.set_dilation(dilation)
            return self.set_global_tokens(global_tokens)
        if global_tokens is not None:
            raise ValueError("centers must be None beside global_tokens, got both: leave one of them out")
        if not (type(dilation) is int and dilation == 1) and np.any(np.asarray(dilation) != 1):
            raise ValueError("centers must be None beside a dilation other than 1, got both: leave one of them out")
        return self.set_centers(centers, sigma)

    cdef int set_dilation(self, object dilation) except -1:
        cdef cnp.ndarray a
        if type(dilation) is int and dilation == 1:
            return 0
        a = array_of(dilation, "dilation")
        if not cnp.PyArray_ISINTEGER(a):
            raise wrong_integers(a, dilation, "dilation")
        if shape_of(a) != () and shape_of(a) != (self.p.H,):
            raise ValueError(f"dilation must be an int or have shape {(self.p.H,)}, got {shape_of(a)}")
        own = positions(a)
        if not are_within(own, 1, AF_MAX_POSITION):
            raise ValueError(f"dilation must be at least 1, got {a.min()}")
        a = repeated(first_number(own)[0], self.p.H) if cnp.PyArray_NDIM(own) == 0 else own
        self.positioned = self.positioned or not are_within(a, 1, 1)
        self.visible.dilation = <const int64_t *>self.kept(a)
        return 0

    cdef int set_global_tokens(self, object global_tokens) except -1:
        cdef cnp.ndarray a, tokens, indices
        cdef cnp.npy_intp *shape = [self.p.B, self.p.Lk]
        if global_tokens is None:
            return 0
        a = listed(global_tokens)
        a = cnp.PyArray_NewCopy(array_of(global_tokens, "global_tokens"), cnp.NPY_CORDER) if a is None else a
        if not cnp.PyArray_ISBOOL(a) and not cnp.PyArray_ISINTEGER(a) and a.size:
            raise wrong_dtype(a, global_tokens, "global_tokens", "indices or bool",
                              "write {0}.astype(np.int64) if they are indices, {0} != 0 if one for each key")
        tokens = cnp.PyArray_ZEROS(2, shape, cnp.NPY_BOOL, 0)
        if cnp.PyArray_ISBOOL(a):
            check_global_tokens(a, self.batch_shape(), self.p.B, self.p.Lk)
            tokens[...] = a if cnp.PyArray_NDIM(a) == 1 else a.reshape(shape_of(tokens))
            self.positioned = self.positioned or bool(tokens.any())
        else:
            indices = own_integers(a)
            if not self.are_some_keys(indices):
                check_global_tokens(a, self.batch_shape(), self.p.B, self.p.Lk)
            self.mark(tokens, indices)
            self.positioned = self.positioned or cnp.PyArray_SIZE(tokens) > 0 and cnp.PyArray_SIZE(indices) > 0
        self.visible.global_tokens = <const uint8_t *>self.kept(tokens)
        return 0

    cdef bint are_some_keys(self, cnp.ndarray indices):
        """Whether they are one row of key numbers, too few or many to be a bool for each key."""
        return (cnp.PyArray_NDIM(indices) == 1 and cnp.PyArray_SIZE(indices) != self.p.Lk
                and are_within(indices, 0, self.p.Lk - 1))

    cdef void mark(self, cnp.ndarray tokens, cnp.ndarray indices) noexcept:
        """Set the tokens of these indices, of all batch rows or one row of indices for each."""
        cdef uint8_t *token = <uint8_t *>cnp.PyArray_DATA(tokens)
        cdef int64_t *index = first_number(indices)
        cdef int64_t n = axis(indices, 1), step = 0 if cnp.PyArray_NDIM(indices) == 1 else n, b, k
        for b in range(self.p.B):
            for k in range(n):
                token[b * self.p.Lk + index[b * step + k]] = True

    cdef int set_centers(self, object centers, object sigma) except -1:
        cdef cnp.ndarray a = array_of(centers, "centers"), places
        cdef bint smooth = not cnp.PyArray_ISINTEGER(a)
        if smooth and dtype_of(a) < 0:
            raise wrong_dtype(a, centers, "centers", "integers or floating point", "write {0}.astype(np.float64)")
        places = real_array(a, "centers")
        if not are_finite(places):
            raise ValueError(f"centers must be finite, got {places[~np.isfinite(places)][0]}")
        sides = (self.visible.left, self.visible.right)
        check_sigma(centers, sigma, smooth, sides if sum(sides) < AF_FAR else None)
        if smooth:
            sigma = real_number(sigma, "sigma")
            if not (isfinite(sigma) and sigma > 0):
                raise ValueError(f"sigma must be finite and above 0, got {sigma}")
            self.score.gaussian = sqrt(0.5 / log(2.0)) / sigma
        places = places[..., None]
        if not self.broadcasts(places, self.p.Lq, 1):
            check_axes("centers", shape_of(a), self.batch_shape(), (self.p.H, self.p.Lq))
        self.positioned = self.visible.causal
        return self.set_pairs(&self.visible.center, places)

    # ---- one number for each batch row, or packed sequence ----

    cdef tuple rows_shape(self):
        return (self.rows,) if self.packed else self.batch_shape()

    cdef cnp.ndarray whole_rows(self, object x, str name, bint one_for_all):
        """Contiguous int64 that only this call has."""
        cdef bint one = one_for_all or self.rows == 1
        cdef cnp.ndarray a
        if is_whole(x):
            if not one:
                raise wrong_rows(name, (), self.rows_shape(), self.ndim)
            return repeated(position(x), self.rows)
        a = listed(x)
        a = array_of(x, name) if a is None else a
        if not cnp.PyArray_ISINTEGER(a) and a.size:
            raise wrong_integers(a, x, name)
        a = positions(a)
        if cnp.PyArray_NDIM(a) == 0 and one:
            return repeated(first_number(a)[0], self.rows)
        if cnp.PyArray_NDIM(a) == 1 and cnp.PyArray_DIMS(a)[0] == self.rows:
            return a
        shape = self.rows_shape()
        if shape_of(a) != shape:
            raise wrong_rows(name, shape_of(a), shape, self.ndim)
        return a

    cdef cnp.ndarray length_rows(self, object x, str name, int64_t longest, str hint=""):
        cdef cnp.ndarray a = self.whole_rows(x, name, False)
        if not are_within(a, 0, longest):
            raise ValueError(f"{name} must be within 0 .. {longest}, got {a.min()} .. {a.max()}{hint}")
        return a

    cdef int set_lengths(self, object q_lengths, object kv_lengths) except -1:
        if q_lengths is not None:
            self.q_lengths = self.length_rows(q_lengths, "q_lengths", self.p.Lq)
            self.visible.q_length = <const int64_t *>self.kept(self.q_lengths)
        if kv_lengths is not None:
            self.kv_lengths = self.length_rows(kv_lengths, "kv_lengths", self.p.Lk)
            self.visible.kv_length = <const int64_t *>self.kept(self.kv_lengths)
        return 0

    cdef int set_starts(self, object kv_starts) except -1:
        if kv_starts is not None:
            a = self.length_rows(kv_starts, "kv_starts", self.p.Lk, ": it counts keys of padding on the left")
            self.visible.kv_start = <const int64_t *>self.kept(a)
        return 0

    cdef int set_offset(self, object q_offset) except -1:
        cdef cnp.ndarray a
        if q_offset is None:
            return self.check_positions()
        if isinstance(q_offset, str):
            if q_offset != "end":
                raise ValueError(f"q_offset must be an int, one for each batch row, or \"end\", got {q_offset!r}")
            a = self.last_at_last()
        else:
            a = self.whole_rows(q_offset, "q_offset", True)
        self.visible.q_offset = <const int64_t *>self.kept(a)
        return 0

    cdef cnp.ndarray last_at_last(self):
        """The offsets by which the last query of each row is at its last key."""
        cdef cnp.ndarray a = repeated(self.p.Lk - self.p.Lq, self.rows)
        cdef int64_t *offset = first_number(a)
        cdef int64_t *queries = first_number(self.q_lengths)
        cdef int64_t *keys = first_number(self.kv_lengths)
        cdef int64_t k
        for k in range(self.rows):
            if keys != NULL:
                offset[k] += keys[k] - self.p.Lk
            if queries != NULL:
                offset[k] += self.p.Lq - queries[k]
        return a

    cdef int check_positions(self) except -1:
        """Where they matter, query i is at key i only if there are as many keys as queries."""
        if not self.positioned or (are_within(self.last_at_last(), 0, 0) if self.packed else self.p.Lq == self.p.Lk):
            return 0
        raise missing_offset("cu_q and cu_k differ" if self.packed else
                             f"the lengths differ (Lq = {self.p.Lq}, Lk = {self.p.Lk})")

    # ---- packed sequences ----

    cdef cnp.ndarray bounds(self, object x, str name, int64_t total, str what):
        """Where sequences begin, and the end: `total`, unless that is -1."""
        cdef cnp.ndarray a = array_of(x, name), own
        cdef bint any_end = total < 0
        if not cnp.PyArray_ISINTEGER(a):
            raise wrong_integers(a, x, name)
        if cnp.PyArray_NDIM(a) != 1 or a.size == 0:
            raise ValueError(f"{name} must have shape (sequences + 1,), got {shape_of(a)}")
        own = own_integers(a)
        if any_end:
            total = first_number(own)[cnp.PyArray_SIZE(own) - 1]
        if not rises(own, total):
            wanted = f"{name} must rise from 0" + ("" if any_end else f" to {total}, the rows of {what}")
            if a[0] != 0 or a[a.size - 1] != total:
                raise ValueError(f"{wanted}, got {a[0]} .. {a[a.size - 1]}")
            falls = np.flatnonzero(a[1:] < a[:-1])
            raise ValueError(f"{wanted}, got {a[falls[0]]} before {a[falls[0] + 1]}")
        return own

    cdef int set_bounds(self, object cu_q, object cu_k) except -1:
        cdef cnp.ndarray q = self.bounds(cu_q, "cu_q", self.p.Lq, "query")
        cdef bint paged = self.block_table is not None
        cdef cnp.ndarray k = self.bounds(cu_k, "cu_k", -1 if paged else self.p.Lk, "key")
        if q.size != k.size:
            raise ValueError(f"cu_k must have as many entries as cu_q, {q.size}, got {k.size}")
        self.q_lengths, self.kv_lengths, self.rows = steps_of(q), steps_of(k), cnp.PyArray_SIZE(q) - 1
        if paged:
            self.check_table(first_number(k)[self.rows])
        self.packing.sequences = self.rows
        self.packing.first_query, self.packing.first_key = <const int64_t *>self.kept(q), <const int64_t *>self.kept(k)
        return 0

    cdef int check_table(self, int64_t total) except -1:
        """Whether pages have room for the keys of each sequence, `total` of all together."""
        cdef int64_t room = self.p.Lk, blocks = self.operands.blocks
        if cnp.PyArray_NDIM(self.block_table) != 2 or cnp.PyArray_DIMS(self.block_table)[0] != self.rows:
            raise ValueError(f"block_table must have the pages of each sequence, shape ({self.rows}, blocks), "
                             f"got {shape_of(self.block_table)}")
        if not are_within(self.kv_lengths, 0, room):
            raise ValueError(f"cu_k must have at most {room} keys a sequence, which {blocks} pages of "
                             f"{self.operands.page_size} hold, got {self.kv_lengths.max()}")
        self.p.Lk = total
        return 0
