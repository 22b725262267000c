//! One row per mnemonic: which lane function, in which encodings.

use iced_x86::{Instruction, Mnemonic, OpKind, Register};

use super::forms::*;
use super::plan::{Need, Operands, Plan, Step, number};
use super::scalar;
use crate::float::{F32, F64};
use crate::op::Handler;
use crate::simd::aes::*;
use crate::simd::carryless::*;
use crate::simd::compare::*;
use crate::simd::float::*;
use crate::simd::integer::*;
use crate::simd::logic::*;
use crate::simd::pack::*;
use crate::simd::reciprocal::*;
use crate::simd::sha::*;
use crate::simd::shift::*;
use crate::simd::shuffle::*;

/// Instructions of one lane function on registers or memory, second source last.
fn regular(m: Mnemonic, form: Form) -> Option<Handler> {
    use Mnemonic as M;
    match m {
        M::Paddb | M::Vpaddb => any::<Paddb>(form),
        M::Paddw | M::Vpaddw => any::<Paddw>(form),
        M::Paddd | M::Vpaddd => any::<Paddd>(form),
        M::Paddq | M::Vpaddq => any::<Paddq>(form),
        M::Psubb | M::Vpsubb => any::<Psubb>(form),
        M::Psubw | M::Vpsubw => any::<Psubw>(form),
        M::Psubd | M::Vpsubd => any::<Psubd>(form),
        M::Psubq | M::Vpsubq => any::<Psubq>(form),
        M::Paddsb | M::Vpaddsb => any::<Paddsb>(form),
        M::Paddsw | M::Vpaddsw => any::<Paddsw>(form),
        M::Paddusb | M::Vpaddusb => any::<Paddusb>(form),
        M::Paddusw | M::Vpaddusw => any::<Paddusw>(form),
        M::Psubsb | M::Vpsubsb => any::<Psubsb>(form),
        M::Psubsw | M::Vpsubsw => any::<Psubsw>(form),
        M::Psubusb | M::Vpsubusb => any::<Psubusb>(form),
        M::Psubusw | M::Vpsubusw => any::<Psubusw>(form),
        M::Pminub | M::Vpminub => any::<Pminub>(form),
        M::Pminsw | M::Vpminsw => any::<Pminsw>(form),
        M::Pmaxub | M::Vpmaxub => any::<Pmaxub>(form),
        M::Pmaxsw | M::Vpmaxsw => any::<Pmaxsw>(form),
        M::Pavgb | M::Vpavgb => any::<Pavgb>(form),
        M::Pavgw | M::Vpavgw => any::<Pavgw>(form),
        M::Pabsb | M::Vpabsb => any::<Pabsb>(form),
        M::Pabsw | M::Vpabsw => any::<Pabsw>(form),
        M::Pabsd | M::Vpabsd => any::<Pabsd>(form),
        M::Psignb | M::Vpsignb => any::<Psignb>(form),
        M::Psignw | M::Vpsignw => any::<Psignw>(form),
        M::Psignd | M::Vpsignd => any::<Psignd>(form),
        M::Pmullw | M::Vpmullw => any::<Pmullw>(form),
        M::Pmulhw | M::Vpmulhw => any::<Pmulhw>(form),
        M::Pmulhuw | M::Vpmulhuw => any::<Pmulhuw>(form),
        M::Pmulhrsw | M::Vpmulhrsw => any::<Pmulhrsw>(form),
        M::Pmuludq | M::Vpmuludq => any::<Pmuludq>(form),
        M::Pmaddwd | M::Vpmaddwd => any::<Pmaddwd>(form),
        M::Pmaddubsw | M::Vpmaddubsw => any::<Pmaddubsw>(form),
        M::Psadbw | M::Vpsadbw => any::<Psadbw>(form),
        M::Phaddw | M::Vphaddw => any::<Phaddw>(form),
        M::Phaddd | M::Vphaddd => any::<Phaddd>(form),
        M::Phaddsw | M::Vphaddsw => any::<Phaddsw>(form),
        M::Phsubw | M::Vphsubw => any::<Phsubw>(form),
        M::Phsubd | M::Vphsubd => any::<Phsubd>(form),
        M::Phsubsw | M::Vphsubsw => any::<Phsubsw>(form),
        M::Pminuw | M::Vpminuw => xmm::<Pminuw>(form),
        M::Pminud | M::Vpminud => xmm::<Pminud>(form),
        M::Pminsb | M::Vpminsb => xmm::<Pminsb>(form),
        M::Pminsd | M::Vpminsd => xmm::<Pminsd>(form),
        M::Pmaxuw | M::Vpmaxuw => xmm::<Pmaxuw>(form),
        M::Pmaxud | M::Vpmaxud => xmm::<Pmaxud>(form),
        M::Pmaxsb | M::Vpmaxsb => xmm::<Pmaxsb>(form),
        M::Pmaxsd | M::Vpmaxsd => xmm::<Pmaxsd>(form),
        M::Pmulld | M::Vpmulld => xmm::<Pmulld>(form),
        M::Pmuldq | M::Vpmuldq => xmm::<Pmuldq>(form),
        M::Mpsadbw | M::Vmpsadbw => xmm::<Mpsadbw>(form),
        M::Phminposuw | M::Vphminposuw => narrow::<Phminposuw>(form),
        M::Pcmpeqb | M::Vpcmpeqb => any::<Pcmpeqb>(form),
        M::Pcmpeqw | M::Vpcmpeqw => any::<Pcmpeqw>(form),
        M::Pcmpeqd | M::Vpcmpeqd => any::<Pcmpeqd>(form),
        M::Pcmpgtb | M::Vpcmpgtb => any::<Pcmpgtb>(form),
        M::Pcmpgtw | M::Vpcmpgtw => any::<Pcmpgtw>(form),
        M::Pcmpgtd | M::Vpcmpgtd => any::<Pcmpgtd>(form),
        M::Pcmpeqq | M::Vpcmpeqq => xmm::<Pcmpeqq>(form),
        M::Pcmpgtq | M::Vpcmpgtq => xmm::<Pcmpgtq>(form),
        M::Pand | M::Vpand | M::Andps | M::Vandps | M::Andpd | M::Vandpd => any::<Pand>(form),
        M::Pandn | M::Vpandn | M::Andnps | M::Vandnps | M::Andnpd | M::Vandnpd => any::<Pandn>(form),
        M::Por | M::Vpor | M::Orps | M::Vorps | M::Orpd | M::Vorpd => any::<Por>(form),
        M::Pxor | M::Vpxor | M::Xorps | M::Vxorps | M::Xorpd | M::Vxorpd => any::<Pxor>(form),
        M::Blendps | M::Vblendps | M::Vpblendd => xmm::<Blendps>(form),
        M::Blendpd | M::Vblendpd => xmm::<Blendpd>(form),
        M::Pblendw | M::Vpblendw => xmm::<Pblendw>(form),
        M::Blendvps => legacy::<Blendvps>(form),
        M::Blendvpd => legacy::<Blendvpd>(form),
        M::Pblendvb => legacy::<Pblendvb>(form),
        M::Vblendvps => avx::<Blendvps>(form),
        M::Vblendvpd => avx::<Blendvpd>(form),
        M::Vpblendvb => avx::<Pblendvb>(form),
        M::Packsswb | M::Vpacksswb => any::<Packsswb>(form),
        M::Packssdw | M::Vpackssdw => any::<Packssdw>(form),
        M::Packuswb | M::Vpackuswb => any::<Packuswb>(form),
        M::Punpcklbw | M::Vpunpcklbw => any::<Punpcklbw>(form),
        M::Punpcklwd | M::Vpunpcklwd => any::<Punpcklwd>(form),
        M::Punpckhbw | M::Vpunpckhbw => any::<Punpckhbw>(form),
        M::Punpckhwd | M::Vpunpckhwd => any::<Punpckhwd>(form),
        M::Packusdw | M::Vpackusdw => xmm::<Packusdw>(form),
        M::Pmovzxbw | M::Vpmovzxbw => xmm::<Pmovzxbw>(form),
        M::Pmovzxbd | M::Vpmovzxbd => xmm::<Pmovzxbd>(form),
        M::Pmovzxbq | M::Vpmovzxbq => xmm::<Pmovzxbq>(form),
        M::Pmovzxwd | M::Vpmovzxwd => xmm::<Pmovzxwd>(form),
        M::Pmovzxwq | M::Vpmovzxwq => xmm::<Pmovzxwq>(form),
        M::Pmovzxdq | M::Vpmovzxdq => xmm::<Pmovzxdq>(form),
        M::Pmovsxbw | M::Vpmovsxbw => xmm::<Pmovsxbw>(form),
        M::Pmovsxbd | M::Vpmovsxbd => xmm::<Pmovsxbd>(form),
        M::Pmovsxbq | M::Vpmovsxbq => xmm::<Pmovsxbq>(form),
        M::Pmovsxwd | M::Vpmovsxwd => xmm::<Pmovsxwd>(form),
        M::Pmovsxwq | M::Vpmovsxwq => xmm::<Pmovsxwq>(form),
        M::Pmovsxdq | M::Vpmovsxdq => xmm::<Pmovsxdq>(form),
        M::Punpckldq | M::Vpunpckldq | M::Unpcklps | M::Vunpcklps => any::<Punpckldq>(form),
        M::Punpckhdq | M::Vpunpckhdq | M::Unpckhps | M::Vunpckhps => any::<Punpckhdq>(form),
        M::Punpcklqdq | M::Vpunpcklqdq | M::Unpcklpd | M::Vunpcklpd => xmm::<Punpcklqdq>(form),
        M::Punpckhqdq | M::Vpunpckhqdq | M::Unpckhpd | M::Vunpckhpd => xmm::<Punpckhqdq>(form),
        M::Pslldq | M::Vpslldq => xmm::<Pslldq>(form),
        M::Psrldq | M::Vpsrldq => xmm::<Psrldq>(form),
        M::Palignr | M::Vpalignr => any::<Palignr>(form),
        M::Vpsllvd => avx::<Vpsllvd>(form),
        M::Vpsllvq => avx::<Vpsllvq>(form),
        M::Vpsrlvd => avx::<Vpsrlvd>(form),
        M::Vpsrlvq => avx::<Vpsrlvq>(form),
        M::Vpsravd => avx::<Vpsravd>(form),
        M::Pshufb | M::Vpshufb => any::<Pshufb>(form),
        M::Pshufd | M::Vpshufd => xmm::<Pshufd>(form),
        M::Shufps | M::Vshufps => xmm::<Shufps>(form),
        M::Shufpd | M::Vshufpd => xmm::<Shufpd>(form),
        M::Pshuflw | M::Vpshuflw => xmm::<Pshuflw>(form),
        M::Pshufhw | M::Vpshufhw => xmm::<Pshufhw>(form),
        M::Movsldup | M::Vmovsldup => xmm::<Movsldup>(form),
        M::Movshdup | M::Vmovshdup => xmm::<Movshdup>(form),
        M::Movddup | M::Vmovddup => xmm::<Movddup>(form),
        M::Pshufw => mmx_only::<Pshufw>(form),
        M::Vpermd | M::Vpermps => wide::<Vpermd>(form),
        M::Vpermq | M::Vpermpd => wide::<Vpermq>(form),
        M::Vperm2f128 | M::Vperm2i128 => wide::<Vperm2f128>(form),
        M::Vpbroadcastb => avx::<Broadcast8>(form),
        M::Vpbroadcastw => avx::<Broadcast16>(form),
        M::Vpbroadcastd | M::Vbroadcastss => avx::<Broadcast32>(form),
        M::Vpbroadcastq | M::Vbroadcastsd => avx::<Broadcast64>(form),
        M::Vbroadcastf128 | M::Vbroadcasti128 => wide::<Broadcast128>(form),
        M::Vinsertf128 | M::Vinserti128 => wide::<Vinsertf128>(form),
        M::Vextractf128 | M::Vextracti128 => wide::<Vextractf128>(form),
        M::Movhlps | M::Vmovhlps => narrow::<Movhlps>(form),
        M::Movlhps | M::Vmovlhps => narrow::<MoveHigh>(form),
        M::Aesenc | M::Vaesenc => xmm::<Aesenc>(form),
        M::Aesenclast | M::Vaesenclast => xmm::<Aesenclast>(form),
        M::Aesdec | M::Vaesdec => xmm::<Aesdec>(form),
        M::Aesdeclast | M::Vaesdeclast => xmm::<Aesdeclast>(form),
        M::Aesimc | M::Vaesimc => narrow::<Aesimc>(form),
        M::Aeskeygenassist | M::Vaeskeygenassist => narrow::<Aeskeygenassist>(form),
        M::Pclmulqdq | M::Vpclmulqdq => xmm::<Pclmulqdq>(form),
        M::Gf2p8mulb | M::Vgf2p8mulb => xmm::<Gf2p8mulb>(form),
        M::Gf2p8affineqb | M::Vgf2p8affineqb => xmm_apart::<Gf2p8affineqb>(form),
        M::Gf2p8affineinvqb | M::Vgf2p8affineinvqb => xmm_apart::<Gf2p8affineinvqb>(form),
        M::Sha1rnds4 => legacy::<Sha1rnds4>(form),
        M::Sha1nexte => legacy::<Sha1nexte>(form),
        M::Sha1msg1 => legacy::<Sha1msg1>(form),
        M::Sha1msg2 => legacy::<Sha1msg2>(form),
        M::Sha256rnds2 => legacy::<Sha256rnds2>(form),
        M::Sha256msg1 => legacy::<Sha256msg1>(form),
        M::Sha256msg2 => legacy::<Sha256msg2>(form),
        M::Rcpps | M::Vrcpps => xmm::<Rcpps>(form),
        M::Rsqrtps | M::Vrsqrtps => xmm::<Rsqrtps>(form),
        M::Rcpss | M::Vrcpss => narrow::<Rcpss>(form),
        M::Rsqrtss | M::Vrsqrtss => narrow::<Rsqrtss>(form),
        M::Addps | M::Vaddps => float::<Packed<F32, Add>>(form),
        M::Addpd | M::Vaddpd => float::<Packed<F64, Add>>(form),
        M::Addss | M::Vaddss => scalar::<Scalar<F32, Add>>(form),
        M::Addsd | M::Vaddsd => scalar::<Scalar<F64, Add>>(form),
        M::Subps | M::Vsubps => float::<Packed<F32, Sub>>(form),
        M::Subpd | M::Vsubpd => float::<Packed<F64, Sub>>(form),
        M::Subss | M::Vsubss => scalar::<Scalar<F32, Sub>>(form),
        M::Subsd | M::Vsubsd => scalar::<Scalar<F64, Sub>>(form),
        M::Mulps | M::Vmulps => float::<Packed<F32, Mul>>(form),
        M::Mulpd | M::Vmulpd => float::<Packed<F64, Mul>>(form),
        M::Mulss | M::Vmulss => scalar::<Scalar<F32, Mul>>(form),
        M::Mulsd | M::Vmulsd => scalar::<Scalar<F64, Mul>>(form),
        M::Divps | M::Vdivps => float::<Packed<F32, Div>>(form),
        M::Divpd | M::Vdivpd => float::<Packed<F64, Div>>(form),
        M::Divss | M::Vdivss => scalar::<Scalar<F32, Div>>(form),
        M::Divsd | M::Vdivsd => scalar::<Scalar<F64, Div>>(form),
        M::Minps | M::Vminps => float::<Packed<F32, Min>>(form),
        M::Minpd | M::Vminpd => float::<Packed<F64, Min>>(form),
        M::Minss | M::Vminss => scalar::<Scalar<F32, Min>>(form),
        M::Minsd | M::Vminsd => scalar::<Scalar<F64, Min>>(form),
        M::Maxps | M::Vmaxps => float::<Packed<F32, Max>>(form),
        M::Maxpd | M::Vmaxpd => float::<Packed<F64, Max>>(form),
        M::Maxss | M::Vmaxss => scalar::<Scalar<F32, Max>>(form),
        M::Maxsd | M::Vmaxsd => scalar::<Scalar<F64, Max>>(form),
        M::Sqrtps | M::Vsqrtps => float::<Packed<F32, Sqrt>>(form),
        M::Sqrtpd | M::Vsqrtpd => float::<Packed<F64, Sqrt>>(form),
        M::Sqrtss | M::Vsqrtss => scalar::<Scalar<F32, Sqrt>>(form),
        M::Sqrtsd | M::Vsqrtsd => scalar::<Scalar<F64, Sqrt>>(form),
        M::Roundps | M::Vroundps => float::<Packed<F32, Round>>(form),
        M::Roundpd | M::Vroundpd => float::<Packed<F64, Round>>(form),
        M::Roundss | M::Vroundss => scalar::<Scalar<F32, Round>>(form),
        M::Roundsd | M::Vroundsd => scalar::<Scalar<F64, Round>>(form),
        M::Haddps | M::Vhaddps => float::<Horizontal<F32, Add>>(form),
        M::Haddpd | M::Vhaddpd => float::<Horizontal<F64, Add>>(form),
        M::Hsubps | M::Vhsubps => float::<Horizontal<F32, Sub>>(form),
        M::Hsubpd | M::Vhsubpd => float::<Horizontal<F64, Sub>>(form),
        M::Addsubps | M::Vaddsubps => float::<Addsubps>(form),
        M::Addsubpd | M::Vaddsubpd => float::<Addsubpd>(form),
        M::Dpps | M::Vdpps => float::<Dpps>(form),
        M::Cvtps2pd | M::Vcvtps2pd => float::<Cvtps2pd>(form),
        M::Cvtpd2ps | M::Vcvtpd2ps => float::<Cvtpd2ps>(form),
        M::Cvtdq2ps | M::Vcvtdq2ps => float::<Cvtdq2ps>(form),
        M::Cvtps2dq | M::Vcvtps2dq => float::<Cvtps2dq>(form),
        M::Cvttps2dq | M::Vcvttps2dq => float::<Cvttps2dq>(form),
        M::Cvtpd2dq | M::Vcvtpd2dq => float::<Cvtpd2dq>(form),
        M::Cvttpd2dq | M::Vcvttpd2dq => float::<Cvttpd2dq>(form),
        M::Dppd | M::Vdppd => scalar::<Dppd>(form),
        M::Cvtss2sd | M::Vcvtss2sd => scalar::<Cvtss2sd>(form),
        M::Cvtsd2ss | M::Vcvtsd2ss => scalar::<Cvtsd2ss>(form),
        M::Cvtdq2pd | M::Vcvtdq2pd => xmm::<Cvtdq2pd>(form),
        M::Vcvtph2ps => avx_float::<Cvtph2ps>(form),
        M::Vfmadd132ps => avx_float::<Fma<F32, { order::O132 }, { sign::FMADD }>>(form),
        M::Vfmadd132pd => avx_float::<Fma<F64, { order::O132 }, { sign::FMADD }>>(form),
        M::Vfmadd132ss => avx_scalar::<FmaScalar<F32, { order::O132 }, { sign::FMADD }>>(form),
        M::Vfmadd132sd => avx_scalar::<FmaScalar<F64, { order::O132 }, { sign::FMADD }>>(form),
        M::Vfnmadd132ps => avx_float::<Fma<F32, { order::O132 }, { sign::FNMADD }>>(form),
        M::Vfnmadd132pd => avx_float::<Fma<F64, { order::O132 }, { sign::FNMADD }>>(form),
        M::Vfnmadd132ss => avx_scalar::<FmaScalar<F32, { order::O132 }, { sign::FNMADD }>>(form),
        M::Vfnmadd132sd => avx_scalar::<FmaScalar<F64, { order::O132 }, { sign::FNMADD }>>(form),
        M::Vfmsub132ps => avx_float::<Fma<F32, { order::O132 }, { sign::FMSUB }>>(form),
        M::Vfmsub132pd => avx_float::<Fma<F64, { order::O132 }, { sign::FMSUB }>>(form),
        M::Vfmsub132ss => avx_scalar::<FmaScalar<F32, { order::O132 }, { sign::FMSUB }>>(form),
        M::Vfmsub132sd => avx_scalar::<FmaScalar<F64, { order::O132 }, { sign::FMSUB }>>(form),
        M::Vfnmsub132ps => avx_float::<Fma<F32, { order::O132 }, { sign::FNMSUB }>>(form),
        M::Vfnmsub132pd => avx_float::<Fma<F64, { order::O132 }, { sign::FNMSUB }>>(form),
        M::Vfnmsub132ss => avx_scalar::<FmaScalar<F32, { order::O132 }, { sign::FNMSUB }>>(form),
        M::Vfnmsub132sd => avx_scalar::<FmaScalar<F64, { order::O132 }, { sign::FNMSUB }>>(form),
        M::Vfmaddsub132ps => avx_float::<Fma<F32, { order::O132 }, { sign::FMADDSUB }>>(form),
        M::Vfmaddsub132pd => avx_float::<Fma<F64, { order::O132 }, { sign::FMADDSUB }>>(form),
        M::Vfmsubadd132ps => avx_float::<Fma<F32, { order::O132 }, { sign::FMSUBADD }>>(form),
        M::Vfmsubadd132pd => avx_float::<Fma<F64, { order::O132 }, { sign::FMSUBADD }>>(form),
        M::Vfmadd213ps => avx_float::<Fma<F32, { order::O213 }, { sign::FMADD }>>(form),
        M::Vfmadd213pd => avx_float::<Fma<F64, { order::O213 }, { sign::FMADD }>>(form),
        M::Vfmadd213ss => avx_scalar::<FmaScalar<F32, { order::O213 }, { sign::FMADD }>>(form),
        M::Vfmadd213sd => avx_scalar::<FmaScalar<F64, { order::O213 }, { sign::FMADD }>>(form),
        M::Vfnmadd213ps => avx_float::<Fma<F32, { order::O213 }, { sign::FNMADD }>>(form),
        M::Vfnmadd213pd => avx_float::<Fma<F64, { order::O213 }, { sign::FNMADD }>>(form),
        M::Vfnmadd213ss => avx_scalar::<FmaScalar<F32, { order::O213 }, { sign::FNMADD }>>(form),
        M::Vfnmadd213sd => avx_scalar::<FmaScalar<F64, { order::O213 }, { sign::FNMADD }>>(form),
        M::Vfmsub213ps => avx_float::<Fma<F32, { order::O213 }, { sign::FMSUB }>>(form),
        M::Vfmsub213pd => avx_float::<Fma<F64, { order::O213 }, { sign::FMSUB }>>(form),
        M::Vfmsub213ss => avx_scalar::<FmaScalar<F32, { order::O213 }, { sign::FMSUB }>>(form),
        M::Vfmsub213sd => avx_scalar::<FmaScalar<F64, { order::O213 }, { sign::FMSUB }>>(form),
        M::Vfnmsub213ps => avx_float::<Fma<F32, { order::O213 }, { sign::FNMSUB }>>(form),
        M::Vfnmsub213pd => avx_float::<Fma<F64, { order::O213 }, { sign::FNMSUB }>>(form),
        M::Vfnmsub213ss => avx_scalar::<FmaScalar<F32, { order::O213 }, { sign::FNMSUB }>>(form),
        M::Vfnmsub213sd => avx_scalar::<FmaScalar<F64, { order::O213 }, { sign::FNMSUB }>>(form),
        M::Vfmaddsub213ps => avx_float::<Fma<F32, { order::O213 }, { sign::FMADDSUB }>>(form),
        M::Vfmaddsub213pd => avx_float::<Fma<F64, { order::O213 }, { sign::FMADDSUB }>>(form),
        M::Vfmsubadd213ps => avx_float::<Fma<F32, { order::O213 }, { sign::FMSUBADD }>>(form),
        M::Vfmsubadd213pd => avx_float::<Fma<F64, { order::O213 }, { sign::FMSUBADD }>>(form),
        M::Vfmadd231ps => avx_float::<Fma<F32, { order::O231 }, { sign::FMADD }>>(form),
        M::Vfmadd231pd => avx_float::<Fma<F64, { order::O231 }, { sign::FMADD }>>(form),
        M::Vfmadd231ss => avx_scalar::<FmaScalar<F32, { order::O231 }, { sign::FMADD }>>(form),
        M::Vfmadd231sd => avx_scalar::<FmaScalar<F64, { order::O231 }, { sign::FMADD }>>(form),
        M::Vfnmadd231ps => avx_float::<Fma<F32, { order::O231 }, { sign::FNMADD }>>(form),
        M::Vfnmadd231pd => avx_float::<Fma<F64, { order::O231 }, { sign::FNMADD }>>(form),
        M::Vfnmadd231ss => avx_scalar::<FmaScalar<F32, { order::O231 }, { sign::FNMADD }>>(form),
        M::Vfnmadd231sd => avx_scalar::<FmaScalar<F64, { order::O231 }, { sign::FNMADD }>>(form),
        M::Vfmsub231ps => avx_float::<Fma<F32, { order::O231 }, { sign::FMSUB }>>(form),
        M::Vfmsub231pd => avx_float::<Fma<F64, { order::O231 }, { sign::FMSUB }>>(form),
        M::Vfmsub231ss => avx_scalar::<FmaScalar<F32, { order::O231 }, { sign::FMSUB }>>(form),
        M::Vfmsub231sd => avx_scalar::<FmaScalar<F64, { order::O231 }, { sign::FMSUB }>>(form),
        M::Vfnmsub231ps => avx_float::<Fma<F32, { order::O231 }, { sign::FNMSUB }>>(form),
        M::Vfnmsub231pd => avx_float::<Fma<F64, { order::O231 }, { sign::FNMSUB }>>(form),
        M::Vfnmsub231ss => avx_scalar::<FmaScalar<F32, { order::O231 }, { sign::FNMSUB }>>(form),
        M::Vfnmsub231sd => avx_scalar::<FmaScalar<F64, { order::O231 }, { sign::FNMSUB }>>(form),
        M::Vfmaddsub231ps => avx_float::<Fma<F32, { order::O231 }, { sign::FMADDSUB }>>(form),
        M::Vfmaddsub231pd => avx_float::<Fma<F64, { order::O231 }, { sign::FMADDSUB }>>(form),
        M::Vfmsubadd231ps => avx_float::<Fma<F32, { order::O231 }, { sign::FMSUBADD }>>(form),
        M::Vfmsubadd231pd => avx_float::<Fma<F64, { order::O231 }, { sign::FMSUBADD }>>(form),
        _ => None,
    }
}

/// Whether the table has a row for a mnemonic.
pub fn maybe(m: Mnemonic) -> bool {
    regular(m, Form::Mmx).is_some()
        || regular(m, Form::Sse).is_some()
        || regular(m, Form::Vex128).is_some()
        || regular(m, Form::Vex256).is_some()
        || is_special(m)
}

/// Those whose operands need a look.
fn is_special(m: Mnemonic) -> bool {
    use Mnemonic as M;
    matches!(
        m,
        M::Psllw
            | M::Pslld
            | M::Psllq
            | M::Psrlw
            | M::Psrld
            | M::Psrlq
            | M::Psraw
            | M::Psrad
            | M::Vpsllw
            | M::Vpslld
            | M::Vpsllq
            | M::Vpsrlw
            | M::Vpsrld
            | M::Vpsrlq
            | M::Vpsraw
            | M::Vpsrad
            | M::Vpermilps
            | M::Vpermilpd
            | M::Extrq
            | M::Insertq
            | M::Insertps
            | M::Vinsertps
            | M::Pinsrb
            | M::Pinsrw
            | M::Pinsrd
            | M::Pinsrq
            | M::Vpinsrb
            | M::Vpinsrw
            | M::Vpinsrd
            | M::Vpinsrq
            | M::Pextrb
            | M::Pextrw
            | M::Pextrd
            | M::Pextrq
            | M::Vpextrb
            | M::Vpextrw
            | M::Vpextrd
            | M::Vpextrq
            | M::Extractps
            | M::Vextractps
            | M::Movaps
            | M::Movapd
            | M::Movups
            | M::Movupd
            | M::Movdqa
            | M::Movdqu
            | M::Lddqu
            | M::Movntdqa
            | M::Movntps
            | M::Movntpd
            | M::Movntdq
            | M::Movntss
            | M::Movntsd
            | M::Movntq
            | M::Movq
            | M::Vmovaps
            | M::Vmovapd
            | M::Vmovups
            | M::Vmovupd
            | M::Vmovdqa
            | M::Vmovdqu
            | M::Vlddqu
            | M::Vmovntdqa
            | M::Vmovntps
            | M::Vmovntpd
            | M::Vmovntdq
            | M::Vmovq
            | M::Movd
            | M::Vmovd
            | M::Movss
            | M::Movsd
            | M::Vmovss
            | M::Vmovsd
            | M::Movlps
            | M::Movlpd
            | M::Vmovlps
            | M::Vmovlpd
            | M::Movhps
            | M::Movhpd
            | M::Vmovhps
            | M::Vmovhpd
            | M::Movq2dq
            | M::Movdq2q
            | M::Pmovmskb
            | M::Vpmovmskb
            | M::Movmskps
            | M::Vmovmskps
            | M::Movmskpd
            | M::Vmovmskpd
            | M::Ptest
            | M::Vptest
            | M::Vtestps
            | M::Vtestpd
            | M::Ucomiss
            | M::Vucomiss
            | M::Comiss
            | M::Vcomiss
            | M::Ucomisd
            | M::Vucomisd
            | M::Comisd
            | M::Vcomisd
            | M::Cvtsi2ss
            | M::Vcvtsi2ss
            | M::Cvtsi2sd
            | M::Vcvtsi2sd
            | M::Cvtss2si
            | M::Vcvtss2si
            | M::Cvttss2si
            | M::Vcvttss2si
            | M::Cvtsd2si
            | M::Vcvtsd2si
            | M::Cvttsd2si
            | M::Vcvttsd2si
            | M::Cvtpi2ps
            | M::Cvtpi2pd
            | M::Cvtps2pi
            | M::Cvttps2pi
            | M::Cvtpd2pi
            | M::Cvttpd2pi
            | M::Vcvtps2ph
            | M::Cmpps
            | M::Vcmpps
            | M::Cmppd
            | M::Vcmppd
            | M::Cmpss
            | M::Vcmpss
            | M::Cmpsd
            | M::Vcmpsd
            | M::Pcmpestri
            | M::Pcmpestri64
            | M::Pcmpestrm
            | M::Pcmpestrm64
            | M::Pcmpistri
            | M::Pcmpistrm
            | M::Vpcmpestri
            | M::Vpcmpestri64
            | M::Vpcmpestrm
            | M::Vpcmpestrm64
            | M::Vpcmpistri
            | M::Vpcmpistrm
            | M::Emms
            | M::Femms
            | M::Vzeroupper
            | M::Vzeroall
    )
}

/// Complete a plan in which the memory operand is in place.
pub fn fill(insn: &Instruction, o: &Operands, plan: &mut Plan) -> Option<()> {
    let m = insn.mnemonic();
    let form = o.form;
    let register_source = insn.op_count() > 0 && insn.op_kind(o.source) == OpKind::Register;
    let source = if register_source { number(insn.op_register(o.source)) } else { SCRATCH };
    let step = |handler: Handler| Step { handler, a: o.a, b: source, c: o.c, d: o.d, imm: o.imm };
    if !is_special(m) {
        plan.step = Some(step(regular(m, form)?));
        return Some(());
    }
    special(insn, o, plan, source, step)
}

/// The step of an instruction whose destination is memory runs into the scratch register.
fn to_scratch(plan: &Plan, step: Step) -> Step {
    if plan.store.is_some() { Step { a: SCRATCH, ..step } } else { step }
}

fn special(insn: &Instruction, o: &Operands, plan: &mut Plan, source: u8, step: impl Fn(Handler) -> Step) -> Option<()> {
    use Mnemonic as M;
    let m = insn.mnemonic();
    let form = o.form;
    let immediate_last = insn.op_count() > 0 && insn.op_kind(insn.op_count() - 1) == OpKind::Immediate8;
    let op0 = insn.op0_register();
    let gpr_source = insn.op_count() > 1 && insn.op_kind(o.source) == OpKind::Register && insn.op_register(o.source).is_gpr();
    let wide_gpr = |n: u32| insn.op_kind(n) == OpKind::Register && insn.op_register(n).is_gpr64();
    macro_rules! shift {
        ($by_register:ident, $by_immediate:ident) => {
            if immediate_last { any::<$by_immediate>(form) } else { any::<$by_register>(form) }
        };
    }
    let handler = match m {
        M::Psllw | M::Vpsllw => shift!(Psllw, PsllwImm),
        M::Pslld | M::Vpslld => shift!(Pslld, PslldImm),
        M::Psllq | M::Vpsllq => shift!(Psllq, PsllqImm),
        M::Psrlw | M::Vpsrlw => shift!(Psrlw, PsrlwImm),
        M::Psrld | M::Vpsrld => shift!(Psrld, PsrldImm),
        M::Psrlq | M::Vpsrlq => shift!(Psrlq, PsrlqImm),
        M::Psraw | M::Vpsraw => shift!(Psraw, PsrawImm),
        M::Psrad | M::Vpsrad => shift!(Psrad, PsradImm),
        M::Vpermilps if immediate_last => avx::<Pshufd>(form),
        M::Vpermilps => avx::<Vpermilps>(form),
        M::Vpermilpd if immediate_last => avx::<VpermilpdImm>(form),
        M::Vpermilpd => avx::<Vpermilpd>(form),
        M::Extrq if immediate_last || insn.op_count() == 3 => legacy::<ExtrqImm>(form),
        M::Extrq => legacy::<Extrq>(form),
        M::Insertq if insn.op_count() == 4 => legacy::<InsertqImm>(form),
        M::Insertq => legacy::<Insertq>(form),
        M::Insertps | M::Vinsertps if plan.load.is_some() => narrow::<InsertpsMemory>(form),
        M::Insertps | M::Vinsertps => narrow::<Insertps>(form),

        // Whole registers. From memory and to memory there is no step at all.
        M::Movaps
        | M::Movapd
        | M::Movups
        | M::Movupd
        | M::Movdqa
        | M::Movdqu
        | M::Lddqu
        | M::Movntdqa
        | M::Movntps
        | M::Movntpd
        | M::Movntdq
        | M::Vmovaps
        | M::Vmovapd
        | M::Vmovups
        | M::Vmovupd
        | M::Vmovdqa
        | M::Vmovdqu
        | M::Vlddqu
        | M::Vmovntdqa
        | M::Vmovntps
        | M::Vmovntpd
        | M::Vmovntdq => {
            return whole(o, plan, source, step(xmm::<Copy>(form)?));
        }
        M::Movntss | M::Movntsd => return whole(o, plan, source, step(xmm::<Copy>(form)?)),
        M::Movss | M::Vmovss => return whole(o, plan, source, step(narrow::<MoveSingle>(form)?)),
        M::Movsd | M::Vmovsd => return whole(o, plan, source, step(narrow::<MoveLow>(form)?)),
        M::Movd | M::Vmovd | M::Movq | M::Vmovq | M::Movntq => {
            if gpr_source {
                Some(scalar::move_from_gpr(form, wide_gpr(o.source)))
            } else if insn.op0_kind() == OpKind::Register && op0.is_gpr() {
                Some(scalar::move_to_gpr(form, wide_gpr(0)))
            } else if form == Form::Mmx {
                let s = to_scratch(plan, step(mmx_only::<Copy>(form)?));
                plan.step = Some(s);
                return Some(());
            } else {
                return whole(o, plan, source, step(narrow::<Quad>(form)?));
            }
        }
        M::Movlps | M::Movlpd | M::Vmovlps | M::Vmovlpd => {
            if plan.store.is_some() {
                return whole(o, plan, source, step(narrow::<Copy>(form)?));
            }
            narrow::<MoveLow>(form)
        }
        M::Movhps | M::Movhpd | M::Vmovhps | M::Vmovhpd => {
            if plan.store.is_some() {
                legacy::<High>(Form::Sse)
            } else {
                narrow::<MoveHigh>(form)
            }
        }
        M::Movq2dq => {
            plan.need = Need::SseMmx;
            from_mm_exact::<Quad>()
        }
        M::Movdq2q => {
            plan.need = Need::SseMmx;
            Some(scalar_move(form))
        }

        M::Pinsrb | M::Vpinsrb | M::Pinsrw | M::Vpinsrw | M::Pinsrd | M::Vpinsrd | M::Pinsrq | M::Vpinsrq => {
            let handler = match m {
                M::Pinsrb | M::Vpinsrb => narrow::<Pinsrb>(form),
                M::Pinsrw if form == Form::Mmx => mmx_only::<Pinsrw>(form),
                M::Pinsrw | M::Vpinsrw => narrow::<Pinsrw>(form),
                M::Pinsrd | M::Vpinsrd => narrow::<Pinsrd>(form),
                _ => narrow::<Pinsrq>(form),
            }?;
            if gpr_source {
                plan.before = Some(Step { handler: scalar::stage_gpr, ..step(handler) });
            }
            plan.step = Some(Step { b: SCRATCH, ..step(handler) });
            return Some(());
        }
        M::Pextrw if form == Form::Mmx => Some(scalar::pextrw_mm as Handler),
        M::Pextrb | M::Vpextrb => extract::<Pextrb>(plan),
        M::Pextrw | M::Vpextrw => extract::<Pextrw>(plan),
        M::Pextrd | M::Vpextrd | M::Extractps | M::Vextractps => extract::<Pextrd>(plan),
        M::Pextrq | M::Vpextrq => extract::<Pextrq>(plan),
        M::Pmovmskb | M::Vpmovmskb => Some(scalar::mask::<SignsOfBytes>(form)),
        M::Movmskps | M::Vmovmskps => Some(scalar::mask::<SignsOfSingles>(form)),
        M::Movmskpd | M::Vmovmskpd => Some(scalar::mask::<SignsOfDoubles>(form)),

        // The first operand is a source here.
        M::Ptest | M::Vptest => Some(scalar::tests::<{ u64::MAX }>(form)),
        M::Vtestps => Some(scalar::tests::<0x8000_0000_8000_0000>(form)),
        M::Vtestpd => Some(scalar::tests::<0x8000_0000_0000_0000>(form)),
        M::Ucomiss | M::Vucomiss => Some(scalar::compare::<F32>(false)),
        M::Comiss | M::Vcomiss => Some(scalar::compare::<F32>(true)),
        M::Ucomisd | M::Vucomisd => Some(scalar::compare::<F64>(false)),
        M::Comisd | M::Vcomisd => Some(scalar::compare::<F64>(true)),

        M::Cvtsi2ss | M::Vcvtsi2ss => Some(scalar::integer_to_float::<F32>(wide_source(insn, o), o.vex, gpr_source)),
        M::Cvtsi2sd | M::Vcvtsi2sd => Some(scalar::integer_to_float::<F64>(wide_source(insn, o), o.vex, gpr_source)),
        M::Cvtss2si | M::Vcvtss2si => Some(scalar::float_to_integer::<F32>(wide_gpr(0), false)),
        M::Cvttss2si | M::Vcvttss2si => Some(scalar::float_to_integer::<F32>(wide_gpr(0), true)),
        M::Cvtsd2si | M::Vcvtsd2si => Some(scalar::float_to_integer::<F64>(wide_gpr(0), false)),
        M::Cvttsd2si | M::Vcvttsd2si => Some(scalar::float_to_integer::<F64>(wide_gpr(0), true)),
        M::Cvtpi2ps => {
            plan.need = Need::SseMmx;
            from_mm::<Cvtpi2ps>()
        }
        M::Cvtpi2pd => {
            plan.need = if plan.load.is_some() { Need::Sse } else { Need::SseMmx };
            from_mm_exact::<Cvtpi2pd>()
        }
        M::Cvtps2pi | M::Cvttps2pi | M::Cvtpd2pi | M::Cvttpd2pi => {
            plan.need = Need::SseMmx;
            match m {
                M::Cvtps2pi => to_mm::<Cvtps2pi>(),
                M::Cvttps2pi => to_mm::<Cvttps2pi>(),
                M::Cvtpd2pi => to_mm::<Cvtpd2dq>(),
                _ => to_mm::<Cvttpd2dq>(),
            }
        }
        M::Vcvtps2ph => {
            // The store must not fault once MXCSR has changed.
            plan.probe = plan.store.is_some();
            let s = to_scratch(plan, step(avx_float::<Cvtps2ph>(form)?));
            plan.step = Some(s);
            return Some(());
        }
        // Legacy encodings have eight predicates: the rest of their immediate is ignored.
        M::Cmpps | M::Vcmpps => return compare(plan, o, step(float::<Packed<F32, Compare>>(form)?)),
        M::Cmppd | M::Vcmppd => return compare(plan, o, step(float::<Packed<F64, Compare>>(form)?)),
        M::Cmpss | M::Vcmpss => return compare(plan, o, step(scalar_float::<Scalar<F32, Compare>>(form)?)),
        M::Cmpsd | M::Vcmpsd => return compare(plan, o, step(scalar_float::<Scalar<F64, Compare>>(form)?)),

        M::Pcmpestri | M::Vpcmpestri | M::Pcmpestri64 | M::Vpcmpestri64 => return text(insn, o, plan, step, true, false),
        M::Pcmpestrm | M::Vpcmpestrm | M::Pcmpestrm64 | M::Vpcmpestrm64 => return text(insn, o, plan, step, true, true),
        M::Pcmpistri | M::Vpcmpistri => return text(insn, o, plan, step, false, false),
        M::Pcmpistrm | M::Vpcmpistrm => return text(insn, o, plan, step, false, true),

        M::Emms | M::Femms => {
            plan.need = Need::Mmx;
            Some(scalar::emms as Handler)
        }
        M::Vzeroupper => Some(scalar::zero_registers(false)),
        M::Vzeroall => Some(scalar::zero_registers(true)),
        _ => None,
    }?;
    let s = to_scratch(plan, step(handler));
    plan.step = Some(s);
    Some(())
}

/// A move without a step where memory is involved.
fn whole(o: &Operands, plan: &mut Plan, source: u8, step: Step) -> Option<()> {
    if let Some(load) = &mut plan.load {
        load.register = o.a;
        load.vex = o.vex;
    } else if let Some(store) = &mut plan.store {
        store.register = source;
    } else {
        plan.step = Some(step);
    }
    Some(())
}

fn scalar_move(_: Form) -> Handler {
    movdq2q
}

fn scalar_float<O: Float>(form: Form) -> Option<Handler> {
    super::forms::scalar::<O>(form)
}

fn extract<O: crate::simd::Lanes>(plan: &Plan) -> Option<Handler> {
    if plan.store.is_some() { legacy::<O>(Form::Sse) } else { Some(scalar::extract_to_gpr::<O>()) }
}

/// Whether CVTSI2SS and kin take 64 bits.
fn wide_source(insn: &Instruction, o: &Operands) -> bool {
    match insn.op_kind(o.source) {
        OpKind::Register => insn.op_register(o.source).is_gpr64(),
        _ => insn.memory_size().size() == 8,
    }
}

fn compare(plan: &mut Plan, o: &Operands, step: Step) -> Option<()> {
    plan.step = Some(Step { imm: o.imm & if o.vex { 31 } else { 7 }, ..step });
    Some(())
}

fn text(
    insn: &Instruction,
    o: &Operands,
    plan: &mut Plan,
    step: impl Fn(Handler) -> Step,
    explicit: bool,
    mask: bool,
) -> Option<()> {
    use Mnemonic as M;
    let wide = matches!(insn.mnemonic(), M::Pcmpestri64 | M::Vpcmpestri64 | M::Pcmpestrm64 | M::Vpcmpestrm64);
    debug_assert!(insn.op0_register() != Register::None);
    plan.step = Some(Step { c: wide as u8, ..step(scalar::text_handler(explicit, mask, o.vex)) });
    Some(())
}
