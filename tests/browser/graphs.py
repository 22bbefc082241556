"""The families' workflows as data, one each: ComfyUI's usual graph of the family with our loader in the place of its own."""

from __future__ import annotations

from typing import Final

from tests.browser.graph_parts import Graph, Group, decode, ksampler, loader, node, picture, read_me, text, video

UGLY: Final = "blurry, low quality, distorted, watermark, static, overexposed"

WAN_22: Final = Graph(
    name="Tutti Wan 2.2 text to video",
    columns=(
        (
            read_me(
                "Wan 2.2, text to video,",
                "diffusion_models/wan2.2_t2v_high_noise_14B_fp8_scaled.safetensors diffusion_models/wan2.2_t2v_low_noise_14B_fp8_scaled.safetensors "
                "text_encoders/umt5_xxl_fp8_e4m3fn_scaled.safetensors vae/wan_2.1_vae.safetensors",
                "**Two models, one group:** both stay in the GPUs' memory if it has room for both; the first half of the steps runs on one, "
                "the rest on the other.",
            ),
            Group(
                "1 \u00b7 Load",
                (
                    loader("wan2.2_t2v_high_noise_14B_fp8_scaled.safetensors", "high", "High noise"),
                    loader("wan2.2_t2v_low_noise_14B_fp8_scaled.safetensors", "low", "Low noise"),
                    node("clip", "CLIPLoader", "umt5_xxl_fp8_e4m3fn_scaled.safetensors", "wan", "default"),
                    node("vae", "VAELoader", "wan_2.1_vae.safetensors"),
                ),
            ),
        ),
        (
            Group(
                "2 \u00b7 Describe",
                (
                    text("positive", "an orchestra on a mountain top at sunrise, the camera circles around it, every player a glowing graphics card"),
                    text("negative", UGLY, "Negative prompt"),
                ),
            ),
            Group("3 \u00b7 Size", (node("size", "EmptyHunyuanLatentVideo", 832, 480, 81, 1),)),
            Group("Shift", (node("high_shift", "ModelSamplingSD3", 8, title="High noise", model="high"), node("low_shift", "ModelSamplingSD3", 8, title="Low noise", model="low"))),
        ),
        (
            Group(
                "4 \u00b7 Sample",
                (
                    node(
                        "first", "KSamplerAdvanced", "enable", 7, "randomize", 20, 3.5, "euler", "simple", 0, 10, "enable",
                        model="high_shift", positive="positive", negative="negative", latent_image="size", title="High noise",
                    ),
                    node(
                        "sample", "KSamplerAdvanced", "disable", 0, "fixed", 20, 3.5, "euler", "simple", 10, 10000, "disable",
                        model="low_shift", positive="positive", negative="negative", latent_image="first", title="Low noise",
                    ),
                    decode(),
                ),
            ),
        ),
        (video("wan2.2", 16),),
    ),
)  # fmt: skip

QWEN_IMAGE: Final = Graph(
    name="Tutti Qwen-Image text to image",
    columns=(
        (
            read_me(
                "Qwen-Image, text to image,",
                "diffusion_models/qwen_image_fp8_e4m3fn.safetensors text_encoders/qwen_2.5_vl_7b_fp8_scaled.safetensors vae/qwen_image_vae.safetensors",
            ),
            Group(
                "1 \u00b7 Load",
                (
                    loader("qwen_image_fp8_e4m3fn.safetensors"),
                    node("clip", "CLIPLoader", "qwen_2.5_vl_7b_fp8_scaled.safetensors", "qwen_image", "default"),
                    node("vae", "VAELoader", "qwen_image_vae.safetensors"),
                ),
            ),
        ),
        (
            Group(
                "2 \u00b7 Describe",
                (
                    text(
                        "positive",
                        'a concert poster that says "TUTTI: all together", an orchestra of glowing graphics cards, screen print',
                    ),
                    text("negative", UGLY, "Negative prompt"),
                ),
            ),
            Group("3 \u00b7 Size", (node("size", "EmptySD3LatentImage", 1328, 1328, 1),)),
        ),
        (
            Group(
                "4 \u00b7 Sample",
                (
                    node("shift", "ModelSamplingAuraFlow", 3.1, model="model"),
                    ksampler(20, 2.5, "euler", model="shift"),
                    decode(),
                ),
            ),
        ),
        (picture("qwen_image"),),
    ),
)

QWEN_EDIT: Final = Graph(
    name="Tutti Qwen-Image edit",
    columns=(
        (
            read_me(
                "Qwen-Image-Edit",
                "diffusion_models/qwen_image_edit_2509_fp8_e4m3fn.safetensors text_encoders/qwen_2.5_vl_7b_fp8_scaled.safetensors "
                "vae/qwen_image_vae.safetensors",
                "The prompt's node takes up to three pictures; the first one gives the size. *CFGNorm* changes every step from outside, so the loop "
                "runs step by step; without it, as a whole.",
            ),
            Group(
                "1 \u00b7 Load",
                (
                    loader("qwen_image_edit_2509_fp8_e4m3fn.safetensors"),
                    node("clip", "CLIPLoader", "qwen_2.5_vl_7b_fp8_scaled.safetensors", "qwen_image", "default"),
                    node("vae", "VAELoader", "qwen_image_vae.safetensors"),
                ),
            ),
        ),
        (
            Group(
                "2 \u00b7 Picture and words",
                (
                    node("image", "LoadImage", "example.png", "image"),
                    node("scaled", "FluxKontextImageScale", image="image"),
                    node(
                        "positive", "TextEncodeQwenImageEditPlus", "turn it into an oil painting, keep everything where it is",
                        title="Prompt", clip="clip", vae="vae", image1="scaled",
                    ),
                    node("negative", "TextEncodeQwenImageEditPlus", "", title="Negative prompt", clip="clip", vae="vae", image1="scaled"),
                ),
            ),
        ),
        (
            Group(
                "3 \u00b7 Sample",
                (
                    node("shift", "ModelSamplingAuraFlow", 3, model="model"),
                    node("norm", "CFGNorm", 1, False, model="shift"),
                    node("encode", "VAEEncode", pixels="scaled", vae="vae"),
                    ksampler(20, 2.5, "euler", model="norm", latent="encode"),
                    decode(),
                ),
            ),
        ),
        (picture("qwen_image_edit", 4),),
    ),
)  # fmt: skip

Z_IMAGE: Final = Graph(
    name="Tutti Z-Image text to image",
    columns=(
        (
            read_me(
                "Z-Image Turbo, text to image,",
                "diffusion_models/z_image_turbo_bf16.safetensors text_encoders/qwen_3_4b.safetensors vae/ae.safetensors",
                "The sampler is euler, whose whole loop runs in the daemon. The usual template's res_multistep works too, step by step.",
            ),
            Group(
                "1 \u00b7 Load",
                (
                    loader("z_image_turbo_bf16.safetensors"),
                    node("clip", "CLIPLoader", "qwen_3_4b.safetensors", "lumina2", "default"),
                    node("vae", "VAELoader", "ae.safetensors"),
                ),
            ),
        ),
        (
            Group(
                "2 \u00b7 Describe",
                (
                    text(
                        "positive",
                        "an orchestra on a mountain top at sunrise, every player a glowing graphics card, photograph, 35 mm",
                    ),
                    node(
                        "negative", "ConditioningZeroOut", conditioning="positive", title="Negative (unused at cfg 1)"
                    ),
                ),
            ),
            Group("3 \u00b7 Size", (node("size", "EmptySD3LatentImage", 1024, 1024, 1),)),
        ),
        (
            Group(
                "4 \u00b7 Sample",
                (
                    node("shift", "ModelSamplingAuraFlow", 3, model="model"),
                    ksampler(8, 1, "euler", model="shift"),
                    decode(),
                ),
            ),
        ),
        (picture("z_image"),),
    ),
)

FLUX2: Final = Graph(
    name="Tutti FLUX.2 text to image",
    columns=(
        (
            read_me(
                "FLUX.2 dev, text to image,",
                "diffusion_models/flux2_dev_fp8mixed.safetensors text_encoders/mistral_3_small_flux2_fp8.safetensors vae/flux2-vae.safetensors",
            ),
            Group(
                "1 \u00b7 Load",
                (
                    loader("flux2_dev_fp8mixed.safetensors"),
                    node("clip", "CLIPLoader", "mistral_3_small_flux2_fp8.safetensors", "flux2", "default"),
                    node("vae", "VAELoader", "flux2-vae.safetensors"),
                ),
            ),
        ),
        (
            Group(
                "2 \u00b7 Describe",
                (
                    text("positive", "an orchestra on a mountain top at sunrise, every player a glowing graphics card, photograph, 35 mm"),
                    node("guidance", "FluxGuidance", 4, conditioning="positive"),
                ),
            ),
            Group("3 \u00b7 Size", (node("size", "EmptyFlux2LatentImage", 1024, 1024, 1),)),
            Group("Steps", (node("sampler", "KSamplerSelect", "euler"), node("sigmas", "Flux2Scheduler", 20, 1024, 1024))),
        ),
        (
            Group(
                "4 \u00b7 Sample",
                (
                    node("noise", "RandomNoise", 7, "randomize"),
                    node("guider", "BasicGuider", model="model", conditioning="guidance"),
                    node(
                        "sample", "SamplerCustomAdvanced",
                        noise="noise", guider="guider", sampler="sampler", sigmas="sigmas", latent_image="size",
                    ),
                    decode(),
                ),
            ),
        ),
        (picture("flux2"),),
    ),
)  # fmt: skip

SD35: Final = Graph(
    name="Tutti SD3.5 text to image",
    columns=(
        (
            read_me(
                "Stable Diffusion 3.5, text to image,",
                "checkpoints/sd3.5_large.safetensors diffusion_models/sd3.5_large.safetensors text_encoders/clip_g.safetensors "
                "text_encoders/clip_l.safetensors text_encoders/t5xxl_fp16.safetensors",
                "The published file holds the diffusion model and the VAE: put it into *checkpoints*, and a link to it into *diffusion_models*. "
                "*Load Checkpoint* gives the VAE only.",
            ),
            Group(
                "1 \u00b7 Load",
                (
                    loader("sd3.5_large.safetensors"),
                    node(
                        "clip", "TripleCLIPLoader", "clip_g.safetensors", "clip_l.safetensors", "t5xxl_fp16.safetensors"
                    ),
                    node("all", "CheckpointLoaderSimple", "sd3.5_large.safetensors", title="Its VAE"),
                ),
            ),
        ),
        (
            Group(
                "2 \u00b7 Describe",
                (
                    text(
                        "positive",
                        "an orchestra on a mountain top at sunrise, every player a glowing graphics card, oil painting",
                    ),
                    text("negative", UGLY, "Negative prompt"),
                ),
            ),
            Group("3 \u00b7 Size", (node("size", "EmptySD3LatentImage", 1024, 1024, 1),)),
        ),
        (
            Group(
                "4 \u00b7 Sample",
                (
                    node("shift", "ModelSamplingSD3", 3, model="model"),
                    ksampler(28, 4.5, "euler", model="shift"),
                    decode("all.2"),
                ),
            ),
        ),
        (picture("sd3.5"),),
    ),
)

HUNYUAN_VIDEO: Final = Graph(
    name="Tutti HunyuanVideo text to video",
    columns=(
        (
            read_me(
                "HunyuanVideo, text to video,",
                "diffusion_models/hunyuan_video_t2v_720p_bf16.safetensors text_encoders/clip_l.safetensors "
                "text_encoders/llava_llama3_fp8_scaled.safetensors vae/hunyuan_video_vae_bf16.safetensors",
            ),
            Group(
                "1 \u00b7 Load",
                (
                    loader("hunyuan_video_t2v_720p_bf16.safetensors"),
                    node("clip", "DualCLIPLoader", "clip_l.safetensors", "llava_llama3_fp8_scaled.safetensors", "hunyuan_video", "default"),
                    node("vae", "VAELoader", "hunyuan_video_vae_bf16.safetensors"),
                ),
            ),
        ),
        (
            Group(
                "2 \u00b7 Describe",
                (
                    text("positive", "an orchestra on a mountain top at sunrise, every player a glowing graphics card, slow camera"),
                    node("guidance", "FluxGuidance", 6, conditioning="positive"),
                ),
            ),
            Group("3 \u00b7 Size", (node("size", "EmptyHunyuanLatentVideo", 848, 480, 73, 1),)),
            Group("Steps", (node("sampler", "KSamplerSelect", "euler"), node("sigmas", "BasicScheduler", "simple", 20, 1, model="shift"))),
        ),
        (
            Group(
                "4 \u00b7 Sample",
                (
                    node("shift", "ModelSamplingSD3", 7, model="model"),
                    node("noise", "RandomNoise", 7, "randomize"),
                    node("guider", "BasicGuider", model="shift", conditioning="guidance"),
                    node(
                        "sample", "SamplerCustomAdvanced",
                        noise="noise", guider="guider", sampler="sampler", sigmas="sigmas", latent_image="size",
                    ),
                    node("decode", "VAEDecodeTiled", 256, 64, 64, 8, samples="sample", vae="vae"),
                ),
            ),
        ),
        (video("hunyuan_video", 24),),
    ),
)  # fmt: skip

LTX_VIDEO: Final = Graph(
    name="Tutti LTX-Video text to video",
    columns=(
        (
            read_me(
                "LTX-Video, text to video,",
                "checkpoints/ltx-video-2b-v0.9.5.safetensors diffusion_models/ltx-video-2b-v0.9.5.safetensors text_encoders/t5xxl_fp16.safetensors",
                "The published file holds the diffusion model and the VAE: put it into *checkpoints*, and a link to it into *diffusion_models*. "
                "*Load Checkpoint* gives the VAE only.",
            ),
            Group(
                "1 \u00b7 Load",
                (
                    loader("ltx-video-2b-v0.9.5.safetensors"),
                    node("clip", "CLIPLoader", "t5xxl_fp16.safetensors", "ltxv", "default"),
                    node("all", "CheckpointLoaderSimple", "ltx-video-2b-v0.9.5.safetensors", title="Its VAE"),
                ),
            ),
        ),
        (
            Group(
                "2 \u00b7 Describe",
                (
                    text("words", "an orchestra on a mountain top at sunrise, every player a glowing graphics card, the camera flies around it"),
                    text("bad", UGLY, "Negative prompt"),
                    node("both", "LTXVConditioning", 25, positive="words", negative="bad"),
                ),
            ),
            Group("3 \u00b7 Size", (node("size", "EmptyLTXVLatentVideo", 768, 512, 97, 1),)),
        ),
        (
            Group(
                "4 \u00b7 Sample",
                (
                    node("sampler", "KSamplerSelect", "euler"),
                    node("sigmas", "LTXVScheduler", 30, 2.05, 0.95, True, 0.1, latent="size"),
                    node(
                        "sample", "SamplerCustom", True, 7, "randomize", 3,
                        model="model", positive="both", negative="both.1", sampler="sampler", sigmas="sigmas", latent_image="size",
                    ),
                    decode("all.2"),
                ),
            ),
        ),
        (video("ltx_video", 25),),
    ),
)  # fmt: skip

GRAPHS: Final = (WAN_22, QWEN_IMAGE, QWEN_EDIT, Z_IMAGE, FLUX2, SD35, HUNYUAN_VIDEO, LTX_VIDEO)
