/* SPDX-License-Identifier: GPL-2.0-only */
/* The loggers, compiled in, in const.toml's order. On a logger the first is itself. */
#ifndef MIDSTREAM_LOGGERS_H
#define MIDSTREAM_LOGGERS_H

#include <linux/if_ether.h>

#include "bpf.h"
#include "const.h"

struct logger {
	__u32 ip; /* host byte order */
	__u8 mac[ETH_ALEN];
};

static const struct logger loggers[LOGGER_COUNT] = LOGGERS;

#endif
