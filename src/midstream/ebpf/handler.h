/* SPDX-License-Identifier: GPL-2.0-only */
/* While there is no logger, this host's own stack and its application take the connections. */
#ifndef MIDSTREAM_HANDLER_H
#define MIDSTREAM_HANDLER_H

#include "bpf.h"
#include "const.h"
#include "lifecycle.h"
#include "marked.h"
#include "outcome.h"
#include "tables.h"

/* Has the daemon told us so? */
static __always_inline bool has_no_logger(void)
{
	const struct control *told;
	__u32 zero = 0;

	told = bpf_map_lookup_elem(&control, &zero);
	return told && told->mode & MODE_HANDLER;
}

/* There is no logger: the stack resets what was open, and the sensor connects anew. */
static __always_inline int hand_over(struct packet *p, struct connection *c)
{
	__u32 sensor = c->sensor;

	p->time = bpf_ktime_get_ns();
	if (!break_off(p, c))
		return XDP_DROP;
	COUNT(sensor, handled);
	return XDP_PASS;
}

/* Does this host's own stack have the connection, from a time when there was no logger? */
static __always_inline bool is_taken_by_stack(struct xdp_md *ctx, const struct packet *p)
{
	struct bpf_sock_tuple tuple = {
		.ipv4 = {.saddr = p->key.ip,
			 .sport = p->key.port,
			 .daddr = bswap32(HARDWORKER_IP),
			 .dport = bswap16(MARK_PORT)},
	};
	struct bpf_sock *sock;
	bool taken;

	sock = bpf_skc_lookup_tcp(ctx, &tuple, sizeof(tuple.ipv4), BPF_F_CURRENT_NETNS, 0);
	if (!sock)
		return false;
	taken = sock->state != BPF_TCP_LISTEN;
	bpf_sk_release(sock);
	return taken;
}

#endif
