"""timm: one or two of each of its model modules (timm 1.0), the smallest that differ in kind.

`name@size` runs on images of that size, where the model takes any; `name=size` is built for it.
"""

import functools

import timm
import torch
from torch import nn

from benchmarks.coverage.samples import Sample
from fxsurgery.inputs import Inputs

NAMES = """
beit_base_patch16_224 halonet_h1 eca_botnext26ts_256 lambda_resnet26t botnet26t_256 mobileone_s1 gernet_s repvgg_a0
regnetz_b16 gcresnext26ts bat_resnext26ts cait_xxs24_224 coat_tiny coat_lite_tiny convit_tiny convmixer_768_32
convnext_atto convnextv2_atto convnext_zepto_rms cpubone_nano crossvit_tiny_240 csatv2@256 cs3darknet_focus_s darknet17
cspresnet50 cspnext_tiny davit_tiny deepseek_vit_412m=224 deit_tiny_patch16_224 deit_tiny_distilled_patch16_224
densenet121 densenetblur121d dla34 dla46x_c dpn48b dpn68 edgenext_xx_small efficientformer_l1 efficientformerv2_s0
mobilenetv2_035 mnasnet_small tinynet_e semnasnet_050 mixnet_s tf_mixnet_s spnasnet_100 efficientnet_lite0 fbnetc_100
efficientnet_b0 tf_efficientnet_b0 efficientnetv2_rw_t efficientvim_m1 efficientvit_b0 efficientvit_m0
eva02_tiny_patch14_224 vit_tiny_patch16_dinov3_qkvb fasternet_t0 fastvit_t8 focalnet_tiny_srf gcvit_xxtiny
gemma4_vit_167m=256 ghostnet_100 ghostnetv3_050 hardcorenas_b hgnetv2_b0 hgnet_tiny hiera_tiny_224
sam2_hiera_tiny@256 hieradet_small hrnet_w18_small hrnet_w18_small_v2 iformer_t inception_next_atto
inception_resnet_v2 inception_v3 inception_v4 lcnetv2_small levit_128s lowformer_b0 mambaout_femto
maxvit_pico_rw_256 coatnet_pico_rw_224 coatnext_nano_rw_224 maxxvit_rmlp_nano_rw_256 maxxvitv2_nano_rw_256
poolformer_s12 poolformerv2_s12 caformer_s18 convformer_s18 gmlp_ti16_224 gmixer_12_224 resmlp_12_224 mixer_s16_224
mobilenetv3_small_050 lcnet_035 fbnetv3_b mobilenetv5_base mobilevit_xxs mobilevitv2_050 mvitv2_tiny
naflexvit_base_patch16_gap@224 nasnetalarge@224 nest_tiny nextvit_small nf_regnet_b0 nfnet_l0 eca_nfnet_l0 dm_nfnet_f0
pit_ti_224 pnasnet5large@224 pvt_v2_b0 qwen3_vit_88m=256 rdnet_tiny regnetx_002 regnety_002 regnetz_005 regnetv_040
repghostnet_050 repvit_m1 res2net50_26w_4s res2next50 resnest14d resnet10t resnetblur18 seresnet18 ecaresnet26t
resnetaa34d resnet50 resnetv2_18 rexnet_100 rexnetr_100 selecsls42 legacy_seresnet18 sequencer2d_s shvit_s1 skresnet18
skresnext50_32x4d starnet_s050 swiftformer_xs swin_tiny_patch4_window7_224 swinv2_tiny_window8_256 swinv2_cr_tiny_224
tiny_vit_5m_224 tnt_s_legacy_patch16_224 tresnet_m twins_svt_small twins_pcpvt_small vgg11 visformer_tiny
vit_tiny_patch16_224 flexivit_small vit_tiny_r_s16_p8_224 vit_srelpos_small_patch16_224 samvit_base_patch16_224
vitamin_small_224 volo_d1_224 ese_vovnet19b_slim_dw vovnet39a legacy_xception xception41p xcit_nano_12_p16_224
"""
HEAVY = ("deepseek_vit_412m",)


def samples() -> list[Sample]:
    """The list, in the order of `NAMES`."""
    return [_sample(entry) for entry in NAMES.split()]


def _sample(entry: str) -> Sample:
    name, _, built_for = entry.partition("=")
    name, _, run_on = name.partition("@")
    build = functools.partial(_build, name, int(built_for or 0), int(run_on or 0))
    return Sample(name, build, heavy=name in HEAVY)


def _build(name: str, built_for: int, run_on: int) -> tuple[nn.Module, Inputs]:
    model = timm.create_model(name, pretrained=False, **({"img_size": built_for} if built_for else {}))
    size = built_for or run_on or model.default_cfg["input_size"][-1]
    return model, Inputs((torch.randn(1, 3, size, size),))
