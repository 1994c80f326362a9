/* SPDX-License-Identifier: GPL-2.0-only */
/* What const.h says of each host. There are two files of that name (compiler.py): one is generated for a network and
 * compiled in, the other, loaded/const.h, gets its values when the program is loaded.
 */
#ifndef MIDSTREAM_HOSTS_H
#define MIDSTREAM_HOSTS_H

#include <linux/if_ether.h>

#include "bpf.h"

/* const.toml names at most so many. */
#define MAX_SENSORS 4096
#define MAX_LOGGERS 16
#define MAX_STREAMS 32

/* The loggers are in const.toml's order. On a logger the first is itself. */
struct logger {
	__u32 ip; /* host byte order */
	__u8 mac[ETH_ALEN];
};

struct sensor {
	__u32 ip;     /* host byte order, by which the table is sorted */
	__u16 number; /* position in const.toml */
	__u8 mac[ETH_ALEN];
};

#endif
