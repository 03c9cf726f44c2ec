package main

import (
	"errors"
	"net"
	"reflect"
	"unsafe"

	"github.com/FerretDB/FerretDB/ferretdb"
)

// FerretDB 1.24 can do what a stand-in for MongoDB needs, SCRAM users and refusing everybody else, but its embedding
// package has no setting for it, nor for more than one address. So takeOver reaches into the server it was given.
// The version is pinned in go.mod, and check.sh proves the outcome: a login is asked for and holds.

// initCommands fills the handler's table of commands; with EnableNewAuth set it adds the user commands and guards
// every command that is not for the public.
//
//go:linkname initCommands github.com/FerretDB/FerretDB/internal/handler.(*Handler).initCommands
func initCommands(handler unsafe.Pointer)

// takeOver makes db serve l, with SCRAM logins and, where authorization is set, nothing without one.
func takeOver(db *ferretdb.FerretDB, l net.Listener, authorization bool) (err error) {
	defer func() {
		if recover() != nil {
			err = errors.New("this is not the FerretDB that mongod was written for")
		}
	}()
	lis := field(reflect.ValueOf(db).Elem(), "l").Elem() // clientconn.Listener
	tcp := field(lis, "tcpListener").Addr().Interface().(*net.Listener)
	(*tcp).Close()
	*tcp = l

	handler := field(lis, "Handler") // *handler.Handler
	commands := field(handler.Elem(), "commands")
	open := reflect.MakeMap(commands.Type())
	for name, command := range commands.Seq2() {
		open.SetMapIndex(name, command)
	}
	field(handler.Elem(), "EnableNewAuth").SetBool(true)
	initCommands(handler.UnsafePointer())
	if authorization {
		return nil
	}
	// Logins work also where none is asked for, and anybody may make users: that is how an installer makes the
	// first ones.
	for name, method := range map[string]string{
		"createUser":               "MsgCreateUser",
		"dropAllUsersFromDatabase": "MsgDropAllUsersFromDatabase",
		"dropUser":                 "MsgDropUser",
		"updateUser":               "MsgUpdateUser",
		"usersInfo":                "MsgUsersInfo",
	} {
		command := reflect.New(open.Type().Elem().Elem())
		field(command.Elem(), "Handler").Set(handler.MethodByName(method))
		open.SetMapIndex(reflect.ValueOf(name), command)
	}
	commands.Set(open)
	return nil
}

// field is the field of v by name, embedded ones included, also where it is not exported.
func field(v reflect.Value, name string) reflect.Value {
	f, ok := v.Type().FieldByName(name)
	if !ok {
		panic(name)
	}
	for _, i := range f.Index {
		if v.Kind() == reflect.Pointer {
			v = v.Elem()
		}
		v = v.Field(i)
		v = reflect.NewAt(v.Type(), v.Addr().UnsafePointer()).Elem()
	}
	return v
}
