# Local attention: dilation, global tokens, centers of windows. Included by _core.pyx.


cdef class LocalCall(Call):
    """A call whose windows have centers of their own, or a dilation and global tokens."""

    cdef object global_tokens, dilation, centers, sigma  # as given

    cdef int set_places(self) except -1:
        if self.centers is not None:
            return self.set_centers()
        if self.sigma is not None:
            raise ValueError("sigma is the width of a factor about centers, got no centers: leave sigma out")
        self.set_dilation()
        if self.global_tokens is not None:
            self.set_global_tokens()
        return 0

    cdef int set_dilation(self) except -1:
        cdef cnp.ndarray a = as_array(self.dilation, "dilation")
        if a.dtype.kind not in "iu":
            raise wrong_integers(a, self.dilation, "dilation")
        if shape_of(a) != () and shape_of(a) != (self.p.H,):
            raise ValueError(f"dilation must be an int or have shape {(self.p.H,)}, got {shape_of(a)}")
        if a.size and a.min() < 1:
            raise ValueError(f"dilation must be at least 1, got {a.min()}")
        a = np.ascontiguousarray(np.broadcast_to(whole_array(a), (self.p.H,)))
        self.positioned = self.positioned or bool((a != 1).any())
        self.keep.append(a)
        self.visible.dilation = <const int64_t *>cnp.PyArray_DATA(a)
        return 0

    cdef int set_global_tokens(self) except -1:
        cdef cnp.ndarray a = as_array(self.global_tokens, "global_tokens"), tokens
        cdef int64_t Lk = self.p.Lk
        kind, last = a.dtype.kind, "Lk" if a.dtype.kind == "b" else "n"
        if kind not in "biu" and a.size:
            raise wrong_dtype(a, self.global_tokens, "global_tokens", "indices or bool",
                              "write {0}.astype(np.int64) if they are indices, {0} != 0 if one for each key")
        whole = [(n,) for n in (shape_of(a)[-1:] if cnp.PyArray_NDIM(a) else ())]
        if cnp.PyArray_NDIM(a) == 0 or shape_of(a)[:-1] not in ((), self.batch_shape(), (self.p.B,)):
            raise ValueError(
                f"global_tokens must have shape ({last},) or {self.batch_shape()} + ({last},), got {shape_of(a)}"
            )
        if kind == "b" and whole[0] != (Lk,):
            raise ValueError(f"global_tokens must have one bool for each of the {Lk} keys, got shape {shape_of(a)}")
        if kind != "b" and whole[0] == (Lk,) and Lk > 4 and a.min() >= 0 and a.max() <= 1:
            raise ValueError(
                f"global_tokens has {Lk} integers of 0 and 1 for {Lk} keys: write global_tokens != 0 if there is one "
                f"for each key, np.unique(global_tokens) if they are indices"
            )
        if kind != "b" and a.size and (a.min() < 0 or a.max() >= Lk):
            raise ValueError(f"global_tokens must be within 0 .. {Lk - 1}, got {a.min()} .. {a.max()}")
        rows = np.broadcast_to(a, (self.p.B,) + whole[0]) if cnp.PyArray_NDIM(a) == 1 else a.reshape(
            (self.p.B,) + whole[0])
        tokens = np.zeros((self.p.B, Lk), np.bool_)
        if kind == "b":
            tokens[...] = rows
        elif a.size:
            np.put_along_axis(tokens, rows.astype(np.int64), True, axis=1)
        self.positioned = self.positioned or bool(tokens.any())
        self.keep.append(tokens)
        self.visible.global_tokens = <const uint8_t *>cnp.PyArray_DATA(tokens)
        return 0

    cdef int set_centers(self) except -1:
        cdef cnp.ndarray a = as_array(self.centers, "centers")
        if self.global_tokens is not None:
            raise ValueError("centers cannot be combined with global_tokens")
        if np.any(np.asarray(self.dilation) != 1):
            raise ValueError("centers cannot be combined with dilation")
        if a.dtype.kind not in "iu" and dtype_of(a) < 0:
            raise wrong_dtype(a, self.centers, "centers", "integers or floating point", "write {0}.astype(np.float64)")
        smooth = a.dtype.kind not in "iu"
        places = a.astype(np.float64)
        if not np.isfinite(places).all():
            raise ValueError("centers must be finite")
        self.set_spread(smooth)
        if not self.broadcasts(places[..., None], self.p.Lq, 1):
            check_axes("centers", shape_of(a), self.batch_shape(), (self.p.H, self.p.Lq))
        self.set_rows(&self.visible.center, places)
        self.positioned = self.visible.causal
        return 0

    cdef int set_rows(self, af_tensor *t, object a) except -1:
        """Numbers over (..., H, Lq)."""
        return self.set_pairs(t, without_repeats(np.ascontiguousarray(a)[..., None], 0))

    cdef int set_spread(self, bint smooth) except -1:
        """Integer centers are Luong's local-m, real ones with a sigma his local-p."""
        if not smooth and self.sigma is not None:
            raise ValueError(
                "sigma is for real centers (local-p), got integer centers (local-m): "
                f"write {spelled(self.centers, 'centers')}.astype(np.float64), or leave sigma out"
            )
        if not smooth:
            return 0
        if self.sigma is None:
            wide = 0 < self.visible.left + self.visible.right < AF_FAR
            width = f"sigma=({self.visible.left} + {self.visible.right}) / 4" if wide else "a sigma above 0"
            raise ValueError(
                f"sigma must be given with real centers: write {width} for local-p, "
                "or centers=np.rint(centers).astype(np.int64) for local-m"
            )
        sigma = real_number(self.sigma, "sigma")
        if not (isfinite(sigma) and sigma > 0):
            raise ValueError(f"sigma must be finite and above 0, got {sigma}")
        self.score.gaussian = sqrt(0.5 / log(2.0)) / sigma
        return 0


def local_attention(
    query, key, value, window_size, global_tokens, dilation, centers, sigma, mask, bias, is_causal, q_offset,
    q_lengths, kv_lengths, scale, softcap, alibi_slopes, sink_logits, return_lse, return_weights, out, num_threads,
    return_blocks=None,
):
    """Output, lse, weights; the latter two None where they are not wanted."""
    cdef LocalCall call = LocalCall.__new__(LocalCall)
    call.global_tokens, call.dilation, call.centers, call.sigma = global_tokens, dilation, centers, sigma
    call.set_operands(query, key, value, True)
    call.set_options(mask, bias, is_causal, window_size, q_offset, q_lengths, kv_lengths, scale, softcap,
                     alibi_slopes, sink_logits)
    return call.attend(query, return_lse, return_weights, out, num_threads, return_blocks)
