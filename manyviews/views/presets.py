"""Color settings of the papers. Unless said, blur kernels are a tenth of the view, as SimCLR has them."""

from manyviews.views.distort import Color

# Chen et al. 2020, appendix A, strength 1. SwAV's (Caron et al. 2020) are the same.
SIMCLR = SWAV = Color(0.8, 0.8, 0.8, 0.2)

# Chen et al. 2020 (MoCo v2); SimSiam's (Chen and He 2021) are the same.
MOCO_V2 = SIMSIAM = Color(0.4, 0.4, 0.4, 0.1)

# Grill et al. 2020, appendix B: two distributions, one for each view. Used by MoCo v3, Barlow Twins, VICReg, DINO.
BYOL_PAIR = DINO_PAIR = (
    Color(0.4, 0.4, 0.2, 0.1, blur=1.0),
    Color(0.4, 0.4, 0.2, 0.1, blur=0.1, solarize=0.2),
)

# Caron et al. 2021, for local views.
DINO_LOCAL = Color(0.4, 0.4, 0.2, 0.1, blur=0.5)

# MULAN (2026), appendix A, for local and cutout views; the kernel is that of the global ones.
MULAN = Color(0.4, 0.4, 0.2, 0.1, blur=0.5, kernel=23)

# Bao et al. 2022 (BEiT): a jitter for every view and nothing else. data2vec's (Baevski et al. 2022) is the same.
DATA2VEC = Color(0.4, 0.4, 0.4, 0.0, jitter=1.0, gray=0.0, blur=0.0)
