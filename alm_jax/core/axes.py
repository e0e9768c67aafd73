"""Names of array axes. Parameters carry logical names; a mesh maps them to device axes (`core.mesh.Rules`)."""

LAYERS = "layers"  # stacked layers of one shape; never sharded
EMBED = "embed"  # the residual stream
HEADS = "heads"  # query heads x head width
KV_HEADS = "kv_heads"  # key/value heads x head width
MLP = "mlp"  # hidden units of a feed-forward block
VOCAB = "vocab"  # token ids
LORA = "lora"  # the rank of a low-rank adapter
PATCH = "patch"  # values of one input patch, or kernel width x input channels of a convolution
POSITION = "position"  # learnt or tabulated positions
FEATURES = "features"  # the aligner's input width

BATCH = "batch"  # rows of a batch
LENGTH = "length"  # positions of a row
ROW_HEADS = "row_heads"  # heads of what attends over whole rows (DeepSpeed-Ulysses, Jacobs et al. 2023)

LOGICAL = (LAYERS, EMBED, HEADS, KV_HEADS, MLP, VOCAB, LORA, PATCH, POSITION, FEATURES, BATCH, LENGTH, ROW_HEADS)
