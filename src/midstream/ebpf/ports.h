/* SPDX-License-Identifier: GPL-2.0-only */
/* The marked ports: each stream has one. */
#ifndef MIDSTREAM_PORTS_H
#define MIDSTREAM_PORTS_H

#include "bpf.h"
#include "const.h"

static __always_inline bool is_marked_port(__be16 port)
{
#pragma clang loop unroll(full)
	for (__u32 i = 0; i < MAX_STREAMS; i++)
		if (i < PORT_COUNT && port == bswap16(PORTS[i]))
			return true;
	return false;
}

#endif
