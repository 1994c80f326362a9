/* SPDX-License-Identifier: GPL-2.0-only */
/* What the loader writes before the program is loaded; most of it config.toml decides. It is constant ever after, so
 * that the verifier removes what a setting switches off.
 */
#ifndef MIDSTREAM_SETTINGS_H
#define MIDSTREAM_SETTINGS_H

#include "bpf.h"

struct settings {
	__u64 wakeup;	    /* of bpf_ringbuf_submit(): BPF_RB_FORCE_WAKEUP, or, if the application has a period, NO_WAKEUP */
	__u64 ring_quota;   /* bytes of the ring that one sensor may fill */
	__u32 open_quota;   /* connections that one sensor may have open */
	__u32 check;	    /* verify checksums before storing */
	__u8 stamp[32];	    /* SHA-256 of everything that makes this program and its maps what they are */
	__u8 layout[32];    /* likewise of the maps alone: another program with the same may go on with them */
	__u64 sensors;	    /* how many const.toml names */
};

const volatile struct settings settings SEC(".rodata.settings");

#endif
