# How keys and values are stored: pages that must be there, scales and zero points of bytes. Included by _core.pyx.

STORAGES = {"int8": AF_INT8, "uint8": AF_UINT8, "float8_e4m3fn": AF_FLOAT8_E4M3FN, "float8_e5m2": AF_FLOAT8_E5M2}


cdef int storage_of(cnp.ndarray a) except -1:
    """The af_storage of an array of bytes, else AF_AS_QUERY."""
    cdef int number = cnp.PyArray_TYPE(a)
    if number == cnp.NPY_BYTE:
        return AF_INT8
    if number == cnp.NPY_UBYTE:
        return AF_UINT8
    if number < 256 or cnp.PyArray_ITEMSIZE(a) != 1:
        return AF_AS_QUERY
    return STORAGES.get(a.dtype.name, AF_AS_QUERY)


@cython.no_gc
cdef class Stored(Operands):
    """The options that say how keys and values are stored. None is the same as an option that is left out."""

    cdef af_packing packing  # of packed sequences

    cdef int check_pages(self) except -1:
        """Every page that holds a key which is not padding must be there; of packed sequences, every page of theirs."""
        cdef int64_t b, n, begin, end, page, pages, size = self.operands.page_size
        if self.block_table is None:
            return 0
        pages = axis(self.key, 4)
        for b in range(self.packing.sequences if self.packed else self.p.B):
            end = self.visible.kv_length[b] if self.visible.kv_length != NULL else self.p.Lk
            if self.packed:
                end = self.packing.first_key[b + 1] - self.packing.first_key[b]
            begin = self.visible.kv_start[b] if self.visible.kv_start != NULL else 0
            n = begin // size
            while begin < end and n * size < end:
                page = self.operands.block_table[b * self.operands.blocks + n]
                if not 0 <= page < pages:
                    there = f"pages 0 .. {pages - 1} of key" if pages else "pages of key, which has none,"
                    have = "cu_k has" if self.packed else "kv_lengths and kv_starts have"
                    raise ValueError(f"block_table must name {there} where {have} keys, "
                                     f"got {page} for keys {n * size} .. {min(end, (n + 1) * size) - 1} "
                                     f"of {'sequence' if self.packed else 'batch row'} {b}")
                n += 1
        return 0

    cdef int set_groups(self, af_groups *g, cnp.ndarray rows, object x, str name, str of) except -1:
        """Numbers for groups of elements: each axis of theirs is 1 or divides that of key, or of value."""
        cdef cnp.ndarray a
        cdef int k, nd = cnp.PyArray_NDIM(rows)
        cdef tuple shape = self.given_shape(rows)
        if x is None:
            return 0
        if self.operands.storage == AF_AS_QUERY:
            raise ValueError(f"{name} must be left out with {of} of {rows.dtype}, which holds real numbers")
        a = as_array(x, name)
        if dtype_of(a) < 0 and a.dtype.kind not in "iu":
            raise wrong_dtype(a, x, name, "real numbers", "write {0}.astype(np.float32)")
        a = as_floats(a) if cnp.PyArray_TYPE(a) == cnp.NPY_DOUBLE else np.asarray(a, np.float32)
        fits = cnp.PyArray_NDIM(a) <= nd and all(
            n == m or n == 1 or n > 0 and m % n == 0 for n, m in zip(shape_of(a)[::-1], shape[::-1]))
        if not fits:
            raise ValueError(f"{name} must have axes that are 1 or divide those of {of}, {shape}, "
                             f"got shape {shape_of(a)}")
        a = a.reshape((1,) * (nd - cnp.PyArray_NDIM(a)) + shape_of(a))
        if self.packed and nd == 3:  # (rows, heads, head size) as the operands were
            a = a.swapaxes(0, 1)
        for k in range(nd - 2):  # of heads, batch rows and pages: one for each, or one for all
            if 1 < cnp.PyArray_DIMS(a)[k] < cnp.PyArray_DIMS(rows)[k]:
                a = np.repeat(a, cnp.PyArray_DIMS(rows)[k] // cnp.PyArray_DIMS(a)[k], axis=k)
        if not cnp.PyArray_ISBEHAVED_RO(a):
            a = np.array(a, np.float32, order="C", copy=True)
        self.kept(a)
        g.rows = max(cnp.PyArray_DIMS(rows)[nd - 2] // max(cnp.PyArray_DIMS(a)[nd - 2], 1), 1)
        g.columns = max(cnp.PyArray_DIMS(rows)[nd - 1] // max(cnp.PyArray_DIMS(a)[nd - 1], 1), 1)
        if self.block_table is not None:
            return self.set_pool_strides(&g.at, a)
        return self.set_strides(&g.at, a)

    cdef int set_stored(self, object key_scale, object value_scale, object key_zero, object value_zero) except -1:
        cdef bint whole = self.operands.storage in (AF_INT8, AF_UINT8)
        if whole and (key_scale is None or value_scale is None and self.value is not None):
            of = "key" if key_scale is None else "value"
            raise ValueError(f"{of}_scale must be given with {of} of {self.key.dtype}: write {of}, {of}_scale = "
                             f"quantize({of}, \"int8\"), or {of}_scale=1.0 if what it holds are the real numbers")
        self.set_groups(&self.operands.key_scale, self.key, key_scale, "key_scale", "key")
        self.set_groups(&self.operands.key_zero, self.key, key_zero, "key_zero_point", "key")
        if self.value is not None:
            self.set_groups(&self.operands.value_scale, self.value, value_scale, "value_scale", "value")
            self.set_groups(&self.operands.value_zero, self.value, value_zero, "value_zero_point", "value")
        return 0
