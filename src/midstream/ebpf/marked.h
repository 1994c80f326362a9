/* SPDX-License-Identifier: GPL-2.0-only */
/* A marked packet: what the program has read of it, whether it came unharmed, and its way on. */
#ifndef MIDSTREAM_MARKED_H
#define MIDSTREAM_MARKED_H

#include "checksum.h"
#include "connection.h"
#include "packet.h"
#include "settings.h"

/* One marked packet, its lengths checked against the frame. */
struct packet {
	struct headers *headers;
	struct connection_key key;
	__u64 time;	      /* set where it is needed */
	__u32 sequence;	      /* this and the next two in host byte order */
	__u32 acknowledgement;
	__u32 timestamp;      /* TSval; 0: none */
	__u32 payload_offset; /* in the frame */
	__u32 length;	      /* of the payload */
	__u8 flags;
};

static __always_inline bool verified(struct xdp_md *ctx, const struct packet *p, __u64 payload_sum)
{
	return !settings.check || is_intact(ctx, p->length, payload_sum);
}

static __always_inline int forward(struct headers *h)
{
	static const __u8 hardworker_mac[ETH_ALEN] = HARDWORKER_MAC, logger_mac[ETH_ALEN] = LOGGER_MAC;
	struct tcphdr *tcp = tcp_header(h);
	struct iphdr *ip = ip_header(h);

	set_mac(h->eth.h_source, hardworker_mac);
	set_mac(h->eth.h_dest, logger_mac);
	ip->daddr = bswap32(LOGGER_IP);
	ip->check = replaced_checksum(ip->check, bswap32(HARDWORKER_IP), bswap32(LOGGER_IP));
	/* The address is in TCP's pseudo-header too (RFC 9293, section 3.1). */
	tcp->check = replaced_checksum(tcp->check, bswap32(HARDWORKER_IP), bswap32(LOGGER_IP));
	return XDP_TX;
}

#endif
