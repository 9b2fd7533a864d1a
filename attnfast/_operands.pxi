# Query, key and value of a call: their shapes and strides, and arrays for results that go with them. Included by
# _core.pyx.


@cython.no_gc  # it is in no cycle of references
cdef class Operands:
    """A problem whose operands are known, with everything it points to kept alive.

    Packed operands have the axes (rows, heads, head size), and so have `out` and the results. C takes them with the
    first two axes swapped.
    """

    cdef af_problem p
    cdef af_operands operands
    cdef af_visible visible
    cdef af_score score
    cdef af_results results
    cdef list keep
    cdef cnp.ndarray query, key, value
    cdef cnp.ndarray block_table  # where key and value are pools of pages, else None
    cdef object layout  # the array whose axis order the output takes
    cdef bint packed, local  # of attention_varlen, of local_attention
    cdef bint stores  # takes keys and values in bytes
    cdef bint columns  # takes keys and values whose rows are not contiguous
    cdef int batch_ndim, ndim
    cdef cnp.npy_intp batch[MAX_DIMS]

    cdef int set_operands(self, object query, object key, object value, bint has_value) except -1:
        cdef int dq, dk, dv
        self.p.size, self.operands.size, self.visible.size = sizeof(af_problem), sizeof(af_operands), sizeof(af_visible)
        self.score.size, self.results.size = sizeof(af_score), sizeof(af_results)
        self.p.operands, self.p.visible = &self.operands, &self.visible
        self.p.score, self.p.results = &self.score, &self.results
        self.results.stage = AF_WEIGHTS
        self.query = self.checked_rows(query, "query", &dq)
        self.key = self.checked_rows(key, "key", &dk)
        if self.stores and storage_of(self.key):
            if has_value:
                self.value = self.checked_rows(value, "value", &dv)
            self.set_storage(query, dq)
        else:
            self.check_dtype("key", key, self.key, dq, dk)
        if has_value and self.value is None:
            self.value = self.checked_rows(value, "value", &dv)
            self.check_dtype("value", value, self.value, dq, dv)
        self.p.dtype = <af_dtype>dq
        self.check_pool("key", self.key)
        self.check_pool("value", self.value)
        self.layout = self.query
        if cnp.PyArray_Check(query):
            self.layout = query.swapaxes(0, 1) if self.packed else query
        self.set_shape()
        return 0

    cdef int set_storage(self, object query, int dq) except -1:
        """Key is stored in bytes: value must be too, and query in what C widens them to."""
        self.operands.storage = <af_storage>storage_of(self.key)
        if self.value is not None and storage_of(self.value) != self.operands.storage:
            raise TypeError(f"value must have the dtype of key, {self.key.dtype}, got {self.value.dtype}: "
                            f"write value, value_scale = quantize(value, \"{self.key.dtype}\")")
        if dq == AF_F64:
            raise TypeError(f"query must be float32, float16 or bfloat16 beside key of {self.key.dtype}, got float64: "
                            f"write {spelled(query, 'query')}.astype(np.float32)")
        return 0

    cdef cnp.ndarray checked_rows(self, object x, str name, int *dtype):
        cdef bint stored = name != "query"
        cdef cnp.ndarray a = operand(x, name, dtype, self.stores and stored, self.columns and stored)
        if not self.packed or stored and self.block_table is not None:
            return a
        if cnp.PyArray_NDIM(a) != 3:
            raise ValueError(f"{name} must have 3 axes (rows, heads, head size), got shape {shape_of(a)}")
        return cnp.PyArray_SwapAxes(a, 0, 1)

    cdef tuple given_shape(self, cnp.ndarray a):
        """The shape of an operand as the caller passed it; of packed ones, only pools of pages have 4 axes."""
        return shape_of(a.swapaxes(0, 1)) if self.packed and cnp.PyArray_NDIM(a) == 3 else shape_of(a)

    cdef int check_dtype(self, str name, object x, cnp.ndarray a, int dq, int da) except -1:
        if da != dq:
            wanted = DTYPES[dq]
            to = f"np.{wanted}" if dq != AF_BF16 else "ml_dtypes.bfloat16"
            raise TypeError(f"{name} has dtype {a.dtype} but query has {wanted}: "
                            f"write {spelled(x, name)}.astype({to})")
        return 0

    cdef int set_shape(self) except -1:
        cdef af_problem *p = &self.p
        cdef cnp.ndarray query = self.query, key = self.key, value = self.value
        cdef bint paged = self.block_table is not None
        p.H, p.Lq, p.D, p.Hk, p.Lk = axis(query, 3), axis(query, 2), axis(query, 1), axis(key, 3), axis(key, 2)
        self.ndim = cnp.PyArray_NDIM(query)
        if not paged:
            self.ndim = max(self.ndim, cnp.PyArray_NDIM(key))
        elif not self.packed:
            self.ndim = max(self.ndim, cnp.PyArray_NDIM(self.block_table) + 2)
        if axis(key, 1) != p.D:
            raise ValueError(f"key must have the head size of query, {p.D} (last axis), got {axis(key, 1)}: "
                             f"{self.shapes('key')}")
        if value is not None:
            p.Dv = axis(value, 1)
            self.ndim = self.ndim if paged else max(self.ndim, cnp.PyArray_NDIM(value))
            if axis(value, 2) != p.Lk or axis(value, 3) != p.Hk or paged and axis(value, 4) != axis(key, 4):
                raise ValueError(f"value must have the {'pages, heads and page size' if paged else 'heads and length'} "
                                 f"of key, got {self.shapes('value', 'key')}")
        if (p.Hk == 0 and p.H != 0) or (p.Hk != 0 and p.H % p.Hk != 0):
            lacks_axis = cnp.PyArray_NDIM(query) == cnp.PyArray_NDIM(key) - 1
            write = ": write query[..., None, :] if it is one query without the axis of lengths" if lacks_axis else ""
            raise ValueError(f"key must have a number of heads that divides the {p.H} heads of query, got {p.Hk}: "
                             f"{self.shapes('key')}{write}")
        if cnp.PyArray_NDIM(query) < cnp.PyArray_NDIM(key) and not paged:
            check_query(shape_of(query), shape_of(key))
        if self.ndim > MAX_DIMS:
            raise ValueError(f"query, key and value must have at most {MAX_DIMS} axes, got {self.ndim}")
        self.batch_ndim = max(0, self.ndim - 3)
        self.set_batch()
        self.set_strides(&self.operands.query, query)
        if paged:
            return self.set_pages()
        self.set_strides(&self.operands.key, key)
        if value is not None:
            self.set_strides(&self.operands.value, value)
        return 0

    cdef str shapes(self, str name, str other="query"):
        """The shapes of two operands as the caller passed them."""
        arrays = {"query": self.query, "key": self.key, "value": self.value}
        return ", ".join([f"{n} {self.given_shape(arrays[n])}" for n in (name, other)])

    cdef int join_batch(self, str name, cnp.ndarray a) except -1:
        cdef int k
        cdef int64_t n
        for k in range(self.batch_ndim):
            n = axis(a, self.batch_ndim - k + 3)
            if n == 1 or n == self.batch[k]:
                continue
            if self.batch[k] != 1:
                if name == "block_table":
                    raise ValueError(f"the batch axes of block_table do not broadcast: block_table "
                                     f"{shape_of(a)[:-2]}, query {shape_of(self.query)}")
                others = [("query", self.query), ("key", self.key)]
                shapes = [f"{other} {shape_of(x)}" for other, x in others if other != name]
                raise ValueError(
                    f"the batch axes of {name} do not broadcast: {name} {shape_of(a)}, {', '.join(shapes)}"
                )
            self.batch[k] = n
        return 0

    cdef int set_batch(self) except -1:
        cdef int k
        cdef int64_t total = 1
        for k in range(self.batch_ndim):
            self.batch[k] = 1
        self.join_batch("query", self.query)
        if self.block_table is None:
            self.join_batch("key", self.key)
        elif not self.packed:
            self.join_batch("block_table", self.block_table[..., None, None])
        if self.block_table is None and self.value is not None:
            self.join_batch("value", self.value)
        for k in range(self.batch_ndim):
            if self.batch[k] != 0 and total > AF_FAR // self.batch[k]:
                raise ValueError("query, key and value have more batch rows than can be counted")
            total *= self.batch[k]
        self.p.B = total
        return 0

    cdef tuple batch_shape(self):
        return tuple([self.batch[k] for k in range(self.batch_ndim)])

    cdef int set_strides(self, af_tensor *t, cnp.ndarray a) except -1:
        """Strides of an array whose last three axes are (heads, rows, elements), broadcast where they are 1."""
        cdef cnp.npy_intp size = cnp.PyArray_ITEMSIZE(a)
        self.set_inner_strides(t, a, size)
        if self.p.B > 1 and cnp.PyArray_NDIM(a) > 3:
            self.set_batch_strides(t, a, size)
        return 0

    cdef int set_inner_strides(self, af_tensor *t, cnp.ndarray a, cnp.npy_intp size) except -1:
        """Those of the last three axes."""
        cdef int nd = cnp.PyArray_NDIM(a)
        cdef cnp.npy_intp *shape = cnp.PyArray_DIMS(a)
        cdef cnp.npy_intp *strides = cnp.PyArray_STRIDES(a)
        t.data = cnp.PyArray_DATA(a)
        t.batch = NULL
        t.b = 0
        t.h = strides[nd - 3] // size if nd > 2 and shape[nd - 3] != 1 else 0
        t.i = strides[nd - 2] // size if nd > 1 and shape[nd - 2] != 1 else 0
        t.j = strides[nd - 1] // size if nd > 0 and shape[nd - 1] != 1 else 0
        if cnp.PyArray_SIZE(a) == 0:
            t.j = 1  # all strides of such an array are 0 with NumPy
        return 0

    cdef int set_batch_strides(self, af_tensor *t, cnp.ndarray a, cnp.npy_intp size) except -1:
        """One stride for all batch axes where they collapse, else a table of offsets."""
        cdef cnp.npy_intp step[MAX_DIMS]
        cdef int k, own, missing = self.batch_ndim - (cnp.PyArray_NDIM(a) - 3)
        cdef bint collapses = True
        cdef int64_t span = -1
        for k in range(self.batch_ndim):
            own = k - missing
            step[k] = cnp.PyArray_STRIDES(a)[own] // size if own >= 0 and cnp.PyArray_DIMS(a)[own] != 1 else 0
        for k in range(self.batch_ndim - 1, -1, -1):
            if self.batch[k] == 1:
                continue
            if span == -1:
                t.b = step[k]
            elif step[k] != span:
                collapses = False
            span = step[k] * self.batch[k]
        if collapses:
            return 0
        cdef cnp.ndarray offsets = np.zeros(1, np.int64)
        for k in range(self.batch_ndim):
            offsets = np.add.outer(offsets, np.arange(self.batch[k], dtype=np.int64) * step[k]).ravel()
        t.batch = <const int64_t *>self.kept(offsets)
        return 0

    # ---- keys and values in pages ----

    cdef int set_table(self, object block_table) except -1:
        """Before the operands, whose shapes mean something else with it."""
        cdef cnp.ndarray a
        if block_table is None:
            return 0
        a = array_of(block_table, "block_table")
        if not cnp.PyArray_ISINTEGER(a) and cnp.PyArray_SIZE(a):
            raise wrong_integers(a, block_table, "block_table")
        if cnp.PyArray_NDIM(a) == 0:
            raise ValueError("block_table must have the pages of each batch row in its last axis, got shape ()")
        self.block_table = own_integers(a)
        return 0

    cdef int check_pool(self, str name, cnp.ndarray a) except -1:
        if self.block_table is not None and a is not None and cnp.PyArray_NDIM(a) != 4:
            raise ValueError(f"{name} must have 4 axes beside block_table (pages, heads, page size, head size), "
                             f"got shape {shape_of(a)}")
        return 0

    cdef int set_pool_strides(self, af_tensor *t, cnp.ndarray a) except -1:
        self.set_inner_strides(t, a, cnp.PyArray_ITEMSIZE(a))
        t.batch = NULL
        t.b = cnp.PyArray_STRIDES(a)[0] // cnp.PyArray_ITEMSIZE(a) if axis(a, 4) > 1 else 0
        return 0

    cdef int set_pages(self) except -1:
        """The table and the pools; which of its entries are read, lengths will tell."""
        cdef int64_t blocks = axis(self.block_table, 1)
        self.operands.page_size = max(self.p.Lk, 1)
        self.operands.blocks = blocks
        if blocks > AF_FAR // self.operands.page_size:
            raise ValueError(f"block_table has more keys than can be counted, got shape {shape_of(self.block_table)}")
        self.p.Lk *= blocks  # of packed sequences cu_k will tell
        if not self.packed and cnp.PyArray_SIZE(self.block_table) != self.p.B * blocks:
            self.block_table = np.ascontiguousarray(np.broadcast_to(self.block_table, self.batch_shape() + (blocks,)))
        self.operands.block_table = <const int64_t *>self.kept(self.block_table)
        self.set_pool_strides(&self.operands.key, self.key)
        if self.value is not None:
            self.set_pool_strides(&self.operands.value, self.value)
        return 0

    cdef void *kept(self, cnp.ndarray a) except? NULL:
        """The data of an array, which lives as long as the problem."""
        if self.keep is None:
            self.keep = []
        self.keep.append(a)
        return cnp.PyArray_DATA(a)

    # ---- memory for results, (heads, rows, ...) as C takes them ----

    cdef tuple outer_shape(self):
        """The shape of the results without their last axis."""
        if self.ndim == 2:
            return (self.p.Lq,)
        return self.batch_shape() + (self.p.H, self.p.Lq)

    cdef int number_of_reals(self):
        """NumPy's number of the dtype that C computes in."""
        return cnp.NPY_DOUBLE if self.p.dtype == AF_F64 else cnp.NPY_FLOAT

    cdef void set_axes(self, cnp.npy_intp *shape, int64_t rows, int64_t last) noexcept:
        """(..., H, rows, last), of which arrays of rank 2 have the last two."""
        cdef int k
        for k in range(self.batch_ndim):
            shape[k] = self.batch[k]
        if self.ndim > 2:
            shape[self.ndim - 3] = self.p.H
        shape[self.ndim - 2] = rows
        shape[self.ndim - 1] = last

    cdef cnp.ndarray new_array(self, int64_t last):
        """An array (..., H, Lq, last) in the dtype of query."""
        cdef cnp.npy_intp shape[MAX_DIMS]
        self.set_axes(shape, self.p.Lq, last)
        return cnp.PyArray_EMPTY(self.ndim, shape, cnp.PyArray_TYPE(self.query), 0)

    cdef cnp.ndarray new_numbers(self, int64_t rows):
        """An array (..., H, rows) of zeros, in what C computes in."""
        cdef cnp.npy_intp shape[MAX_DIMS]
        self.set_axes(shape, rows, 1)
        return cnp.PyArray_ZEROS(self.ndim - 1, shape, self.number_of_reals(), 0)

    cdef cnp.ndarray new_output(self):
        """An output whose memory has the axis order of the caller's query."""
        cdef cnp.ndarray like = self.layout
        cdef cnp.npy_intp shape[MAX_DIMS]
        cdef cnp.npy_intp stored[MAX_DIMS]
        cdef cnp.npy_intp place[MAX_DIMS]  # of each axis, in memory
        cdef cnp.PyArray_Dims axes
        cdef int k
        if cnp.PyArray_NDIM(like) != self.ndim or falls(like):
            return self.new_array(self.p.Dv)
        self.set_axes(shape, self.p.Lq, self.p.Dv)
        find_places(like, place)
        for k in range(self.ndim):
            stored[place[k]] = shape[k]
        axes.ptr, axes.len = place, self.ndim
        return cnp.PyArray_Transpose(cnp.PyArray_EMPTY(self.ndim, stored, cnp.PyArray_TYPE(self.query), 0), &axes)
