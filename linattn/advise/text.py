"""What the published models' configs do not say: how long their texts are."""

# Tokens of text by class: the longest that diffusers' pipelines encode by default. SD3's are CLIP's
# 77 and T5's 256.
TEXT = {
    "UNet2DConditionModel": 77,
    "DiTTransformer2DModel": 0,
    "PixArtTransformer2DModel": 300,
    "SD3Transformer2DModel": 77 + 256,
    "FluxTransformer2DModel": 512,
    "QwenImageTransformer2DModel": 512,
}
# The pipelines whose default differs from that of others of their class.
SHORTER_TEXT = {"PixArtAlphaPipeline": 120}
