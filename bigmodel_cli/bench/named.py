"""Names that people know for PyTorch's operations, and what is special in what they move."""

from __future__ import annotations

ATTENTION = "attention"
OPTIMIZER = "optimizer"
ELEMENTWISE = "elementwise"
NAMES = {
    **dict.fromkeys(("_softmax", "_log_softmax", "_softmax_backward_data"), "softmax"),
    **dict.fromkeys(("_log_softmax_backward_data", "_safe_softmax", "logsumexp"), "softmax"),
    **dict.fromkeys(("nll_loss_forward", "nll_loss_backward"), "loss"),
    **dict.fromkeys(("nll_loss2d_forward", "nll_loss2d_backward"), "loss"),
    **dict.fromkeys(("native_layer_norm", "native_layer_norm_backward"), "layer norm"),
    **dict.fromkeys(("_fused_rms_norm", "_fused_rms_norm_backward", "rms_norm"), "RMS norm"),
    **dict.fromkeys(("native_batch_norm", "native_batch_norm_backward"), "batch norm"),
    **dict.fromkeys(("_batch_norm_with_update", "batch_norm_backward"), "batch norm"),
    **dict.fromkeys(("_native_batch_norm_legit", "cudnn_batch_norm"), "batch norm"),
    **dict.fromkeys(("cudnn_batch_norm_backward",), "batch norm"),
    **dict.fromkeys(("embedding", "embedding_dense_backward"), "embedding"),
    **dict.fromkeys(("native_dropout", "native_dropout_backward", "bernoulli_"), "dropout"),
    **dict.fromkeys(("uniform_", "normal_", "random_", "exponential_"), "random numbers"),
    **dict.fromkeys(("max_pool2d_with_indices", "avg_pool2d", "mean"), "pooling and means"),
    **dict.fromkeys(("max_pool2d_with_indices_backward",), "pooling and means"),
    **dict.fromkeys(("avg_pool2d_backward", "_adaptive_avg_pool2d"), "pooling and means"),
    **dict.fromkeys(("_adaptive_avg_pool2d_backward",), "pooling and means"),
    **dict.fromkeys(("sum", "cumsum", "linalg_vector_norm", "_foreach_norm"), "sums and norms"),
    **dict.fromkeys(("amax", "amin", "max", "min", "argmax", "all", "any"), "sums and norms"),
    **dict.fromkeys(("tril", "triu", "arange", "where", "masked_fill_"), ELEMENTWISE),
    **dict.fromkeys(("copy_", "clone", "_to_copy", "cat", "stack", "constant_pad_nd"), "copies"),
    **dict.fromkeys(("index", "index_select", "gather", "index_put_", "index_add"), "copies"),
    **dict.fromkeys(("index_add_", "scatter", "scatter_", "slice_backward"), "copies"),
    **dict.fromkeys(("select_backward", "repeat", "_unsafe_index", "index_put"), "copies"),
    **dict.fromkeys(("roll", "flip", "scatter_add", "scatter_add_", "masked_select"), "copies"),
    **dict.fromkeys(("zero_", "fill_", "zeros", "ones", "zeros_like", "ones_like"), "fills"),
    **dict.fromkeys(("full", "full_like", "new_zeros", "new_ones", "new_full"), "fills"),
    **dict.fromkeys(("_local_scalar_dense",), "reading numbers back"),
    **dict.fromkeys(("linalg_solve_triangular", "triangular_solve"), "triangular solves"),
}
"""By the operation's name; others are elementwise where PyTorch says so, or called as they are."""
UPDATES = ("_fused_adam", "_fused_sgd", "_foreach_")
"""What the names of operations on all weights at once begin with."""
LINEAR = "_linear_pointwise"
"""oneDNN's linear layer: inputs (..., N), weight (M, N)."""
PRODUCTS = ("mm", "addmm", "bmm", "baddbmm", "addmv", "mv", "dot", "_int_mm", LINEAR)
_EMPTY = ("empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided")
_MARKS = ("_record_function_enter_new", "_record_function_exit", "sym_size", "is_same_size")
_VIEWS = ("_unsafe_view", "promote_types", "_reshape_alias", "detach_")
FREE = (*_EMPTY, *_MARKS, *_VIEWS)
"""What touches no memory."""
WRITING = (
    "copy_",
    "zero_",
    "fill_",
    "uniform_",
    "normal_",
    "random_",
    "exponential_",
    "bernoulli_",
)
"""What writes its first argument and does not read it."""
PICKING = ("embedding", "index", "index_select", "gather", "nll_loss_forward", "_unsafe_index")
"""What reads of its first argument only as much as comes out."""
ADDING = ("index_put_", "index_add_", "scatter_", "scatter_add_")
"""What changes of its first argument only as much as its last tensor has."""
