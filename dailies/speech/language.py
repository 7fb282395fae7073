"""A language as the engines name it, by two letters: containers have it by three, browsers with a country behind it."""

from __future__ import annotations

_CODES = """
af afr  am amh  ar ara  as asm  az aze  ba bak  be bel  bg bul  bn ben  bo bod tib  br bre  bs bos  ca cat  cs ces cze
cy cym wel  da dan  de deu ger  el ell gre  en eng  es spa  et est  eu eus baq  fa fas per  fi fin  fo fao  fr fra fre
gl glg  gu guj  ha hau  haw haw  he heb  hi hin  hr hrv  ht hat  hu hun  hy hye arm  id ind  is isl ice  it ita  ja jpn
jw jav jv  ka kat geo  kk kaz  km khm  kn kan  ko kor  la lat  lb ltz  ln lin  lo lao  lt lit  lv lav  mg mlg
mi mri mao  mk mkd mac  ml mal  mn mon  mr mar  ms msa may  mt mlt  my mya bur  ne nep  nl nld dut  nn nno
no nor nob nb  oc oci  pa pan  pl pol  ps pus  pt por  ro ron rum  ru rus  sa san  sd snd  si sin  sk slk slo
sl slv  sn sna  so som
sq sqi alb  sr srp  su sun  sv swe  sw swa  ta tam  te tel  tg tgk  th tha  tk tuk  tl tgl fil  tr tur  tt tat  uk ukr
ur urd  uz uzb  vi vie  yi yid  yo yor  zh zho chi cmn  yue yue
"""
_SHORT = {code: codes[0] for line in _CODES.split("\n") for codes in map(str.split, line.split("  ")) for code in codes}


def short(language: str | None) -> str | None:
    """None where the engine shall find out by itself; what is in no list is left as it is, for the engine to judge."""
    code = (language or "").strip().lower().replace("_", "-").split("-")[0]
    return None if code in ("", "und", "auto") else _SHORT.get(code, code)
